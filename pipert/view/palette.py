"""The colours of ops, the same in every picture: a hue for the kind, a tone for the chunk and the path.

Blue, red, green and yellow stay apart for every kind of colour blindness: of any two of F, B, I and W the distance in
CIE Lab is at least 22, simulated after Machado et al. 2009 for full protanopia, deuteranopia and tritanopia; and so it
is of S and T from each other and from these.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipert.ir import Op
from pipert.ops import LaneKind, OpKind, Scope

Color = tuple[int, int, int]
"""Red, green, blue; 0 to 255."""

_COLORS: dict[OpKind, Color] = {
    OpKind.FORWARD: (38, 98, 180),
    OpKind.BACKWARD: (190, 70, 40),
    OpKind.INPUT_GRAD: (0, 158, 115),
    OpKind.WEIGHT_GRAD: (242, 200, 70),
    OpKind.RECOMPUTE: (150, 130, 190),
    OpKind.SCORE: (104, 28, 96),
    OpKind.SCORE_W: (200, 168, 236),
    OpKind.VBCAST: (150, 92, 142),
    OpKind.VSTATS: (104, 28, 96),
    OpKind.VGRAD: (188, 140, 180),
    OpKind.EMBED: (122, 132, 52),
    OpKind.EMBED_W: (168, 178, 98),
    OpKind.VEMBED: (122, 132, 52),
    OpKind.VEMBED_GRAD: (168, 178, 98),
    OpKind.OPT: (72, 82, 100),
    OpKind.OVERLAP_F_B: (140, 90, 120),  # only where its two parts do not fit
}
_OF_LANE: dict[LaneKind, Color] = {
    LaneKind.COMPUTE: (120, 125, 135),
    LaneKind.SEND: (112, 124, 145),
    LaneKind.RECV: (160, 170, 188),
    LaneKind.COLLECTIVE: (148, 128, 92),
}

_DARKEST, _LIGHTEST = -0.36, 0.45


def color_of(kind: OpKind) -> Color:
    """Return the colour of a kind of op, at tone 0."""
    return _COLORS.get(kind) or _OF_LANE[kind.lane]


def toned(color: Color, tone: float) -> Color:
    """Mix a colour with white (tone up to 1) or with black (down to -1)."""
    red, green, blue = (round(part + (255 - part) * tone if tone > 0 else part * (1 + tone)) for part in color)
    return red, green, blue


def ink_on(color: Color) -> str:
    """Return the colour of text on a colour: near black or white."""
    red, green, blue = color
    return "#10151d" if 0.3 * red + 0.59 * green + 0.11 * blue > 140 else "#ffffff"


def tones(paths: tuple[tuple[int, ...], ...]) -> tuple[tuple[float, ...], ...]:
    """Give each (path, stage) its tone: a rank's chunks get lighter one by one, later paths are darker throughout.

    Args:
        paths: per path, the rank of each stage.
    """
    if len(paths) == 1:
        bands = [(0.0, _LIGHTEST)]
    else:
        width = (_LIGHTEST - _DARKEST) / len(paths)
        bands = [(_LIGHTEST - (path + 0.7) * width, _LIGHTEST - path * width) for path in range(len(paths))]
    return tuple(_path_tones(path, *band) for path, band in zip(paths, bands, strict=True))


def _path_tones(path: tuple[int, ...], low: float, high: float) -> tuple[float, ...]:
    chunks = [[stage for stage, owner in enumerate(path) if owner == rank] for rank in path]
    return tuple(low + (high - low) * ours.index(stage) / max(1, len(ours) - 1) for stage, ours in enumerate(chunks))


def tone_of(op: Op, shades: Sequence[Sequence[float]], path_of: Sequence[int]) -> float:
    """Return the tone of an op of a stage, given those of `tones`; of other ops it is 0."""
    return shades[path_of[op.microbatch]][op.stage] if op.kind.scope is Scope.MICROBATCH else 0.0


def name_of(kind: OpKind) -> str:
    """Return what a legend calls a kind of op."""
    return _NAMES.get(kind) or kind.name.lower().replace("_", " ")


_NAMES = {
    OpKind.INPUT_GRAD: "input gradient",
    OpKind.WEIGHT_GRAD: "weight gradient",
    OpKind.OVERLAP_F_B: "overlapped pair",
    OpKind.REDUCE_GRAD: "reduce gradients",
    OpKind.EMBED: "embedding, of a shard",
    OpKind.EMBED_W: "its gradient",
    OpKind.SCORE: "S: logits of a shard",
    OpKind.SCORE_W: "T: their gradients",
    OpKind.VEMBED: "sum of the embeddings",
    OpKind.VBCAST: "output of the last stage",
    OpKind.VSTATS: "statistics of the logits",
    OpKind.VGRAD: "gradient of that output",
    OpKind.VEMBED_GRAD: "gradient of the embeddings",
    OpKind.NORM: "gradient norm",
    OpKind.OPT: "optimizer",
}
