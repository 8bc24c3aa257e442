"""The drop-in engine for Megatron-style scripts.

Either nothing in the script changes, and it is started with ``python -m pipert.megatron [--pipert-…] script.py …``; or
one line is added before the first step:

>>> import pipert.megatron
>>> pipert.megatron.install(schedule="zb-1p")

Megatron-core's ``get_forward_backward_func`` then gives a function of the same signature, which runs the schedule with
:class:`pipert.Engine`. ``docs/megatron.md`` says what of Megatron's contract is honoured, and what is refused by name.
"""

from __future__ import annotations

from pipert.megatron.install import install, uninstall
from pipert.megatron.placement import placed

__all__ = ["install", "placed", "uninstall"]
