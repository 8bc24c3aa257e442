"""Runs ``pipert`` with its arguments: ``--device cuda`` is then the stand-in's device, and tensors are the CPU's."""

import as_cuda
import torch

from pipert import cli
from pipert.train import device

as_cuda.install()
device.open_cuda = lambda local_rank, *, deterministic: torch.device("cpu")
cli.main()
