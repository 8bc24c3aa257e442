"""Triton kernels, each with a plain-torch reference in :mod:`pipert.kernels.reference`."""
