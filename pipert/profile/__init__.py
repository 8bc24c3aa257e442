"""Profiling: run a command, keep what its engines recorded of some steps, and say where each rank's time went."""
