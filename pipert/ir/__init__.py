"""The program: what each rank computes, in which order, before anything is said about transfers and memory."""

from pipert.ir.op import Op
from pipert.ir.program import Program

__all__ = ["Op", "Program"]
