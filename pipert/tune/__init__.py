"""Partition, placement and schedule of a model, chosen together from a profile of its layers."""

from pipert.tune.profile import Layer, dump_profile, load_profile, stage_costs
from pipert.tune.search import Tuned, tune

__all__ = ["Layer", "Tuned", "dump_profile", "load_profile", "stage_costs", "tune"]
