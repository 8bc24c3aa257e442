"""The grid in the colours of the other pictures, for terminals."""

from __future__ import annotations

import re

from rich.color import Color
from rich.style import Style
from rich.text import Text

from pipert.ir import Op, Program
from pipert.ops import LaneKind, OpKind
from pipert.view.palette import color_of, ink_on, tone_of, toned, tones

_KINDS = {kind.text: kind for kind in OpKind if kind.lane is LaneKind.COMPUTE and kind.has_microbatch}
_OP = re.compile(rf"\b(?P<stage>\d*)(?P<kind>{'|'.join(_KINDS)})(?P<microbatch>\d+)'*-*")


def colored(text: str, program: Program) -> Text:
    """Colour the ops in the rows of a grid by their kind, with the tones of chunks and paths, and dim what is idle.

    Args:
        text: what ``grid`` made of the program.
        program: whose ops they are.
    """
    shades = tones(program.paths)
    result = Text(no_wrap=True)
    for number, line in enumerate(text.splitlines()):
        row = Text(line + "\n")
        if 1 <= number <= program.num_ranks:
            row.highlight_regex(r" \.(?= |$)", "dim")
            for op in _OP.finditer(line):
                kind, stage = _KINDS[op["kind"]], int(op["stage"] or 0)  # without stages there is one tone
                fill = toned(color_of(kind), tone_of(Op(kind, stage, int(op["microbatch"])), shades, program.path_of))
                style = Style(color=ink_on(fill), bgcolor=Color.from_rgb(*fill))
                row.stylize(style, *op.span())
        result.append_text(row)
    return result
