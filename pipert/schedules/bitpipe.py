"""BitPipe: Chimera with every copy of the model folded into a V, so that chunks and with them the bubble are halved.

Wu et al., "BitPipe: Bidirectional Interleaved Pipeline Parallelism for Accelerating Large Models Training", section 3,
arXiv 2410.19367.
"""

from __future__ import annotations

from pipert.ir import Program
from pipert.schedules.chimera import chimera
from pipert.schedules.request import Request


def bitpipe(request: Request) -> Program:
    """Make the program: of the two chunks of a path on each rank, one is on the way down and one on the way up."""
    return chimera(request)
