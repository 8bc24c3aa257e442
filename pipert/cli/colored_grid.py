"""The grid in the colours of the other pictures, for terminals."""

from __future__ import annotations

import re

from rich.color import Color
from rich.style import Style
from rich.text import Text

from pipert.ir import Program
from pipert.ops import LaneKind, OpKind
from pipert.view.palette import color_of, ink_on, toned, tones

_KINDS = {kind.text: kind for kind in OpKind if kind.lane is LaneKind.COMPUTE}
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
                stage = int(op["stage"] or 0)  # without stages there is one tone
                shade = shades[program.path_of[int(op["microbatch"])]][stage]
                fill = toned(color_of(_KINDS[op["kind"]]), shade)
                style = Style(color=ink_on(fill), bgcolor=Color.from_rgb(*fill))
                row.stylize(style, *op.span())
        result.append_text(row)
    return result
