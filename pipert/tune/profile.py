"""A layer profile: what each layer of a model costs, and its CSV form."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipert.costs import StageCosts
from pipert.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Layer:
    """The costs of one layer on one microbatch.

    Attributes:
        name: for tables and messages.
        F: time of the forward, in ms.
        I: time of the input gradient, in ms.
        W: time of the weight gradient, in ms.
        act: bytes of activation that are held from F to I.
        act_w: the part of them that is held on to W.
        bytes_out: bytes of its output, which is sent on if the next layer stands on another rank.
    """

    name: str
    F: float
    I: float  # noqa: E741
    W: float
    act: float = 0.0
    act_w: float = 0.0
    bytes_out: float = 0.0

    @property
    def time(self) -> float:
        """Forward and backward together."""
        return self.F + self.I + self.W


_COLUMNS = tuple(field.name for field in dataclasses.fields(Layer))
_REQUIRED = ("name", "F", "I", "W")


def stage_costs(layers: Iterable[Layer]) -> StageCosts:
    """Add up the layers of a stage."""
    layers = list(layers)

    def total(name: str) -> float:
        return math.fsum(getattr(layer, name) for layer in layers)

    act = total("act")
    return StageCosts(F=total("F"), I=total("I"), W=total("W"), act=act, act_w=min(act, total("act_w")))


def load_profile(path: str | os.PathLike[str]) -> tuple[Layer, ...]:
    """Read a profile: a header with ``name,F,I,W``, maybe ``act,act_w,bytes_out``, and a row for each layer.

    Raises:
        ConfigError: the file cannot be read, or is not such a table; the message has line, column and text.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            text = file.read()
    except OSError as error:
        raise ConfigError(f"cannot read the profile {os.fspath(path)!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the profile {os.fspath(path)!r} is not text: {error}") from error
    try:
        return parse_profile(text)
    except ConfigError as error:
        raise ConfigError(f"the profile {os.fspath(path)!r}: {error}") from error


def parse_profile(text: str) -> tuple[Layer, ...]:
    """Read a profile's text; see `load_profile`."""
    reader = csv.reader(io.StringIO(text), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise ConfigError(f"line {reader.line_num}: {error}") from None
    if not rows:
        raise ConfigError(f"it is empty; its first line must be {','.join(_COLUMNS)}, or the first four of them")
    (_, header), *body = rows
    columns = _header([cell.strip() for cell in header])
    layers = tuple(_layer(columns, line, row) for line, row in body)
    if not layers:
        raise ConfigError("it has no layers below its header")
    return layers


def dump_profile(layers: Sequence[Layer]) -> str:
    """Write a profile as CSV, so that reading it gives the same layers."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows([getattr(layer, column) for column in _COLUMNS] for layer in layers)
    return file.getvalue()


def _header(columns: Sequence[str]) -> Sequence[str]:
    for number, column in enumerate(columns, start=1):
        if column not in _COLUMNS:
            raise ConfigError(f"line 1, column {number}: {column!r} is not one of {', '.join(_COLUMNS)}")
        if column in columns[: number - 1]:
            raise ConfigError(f"line 1, column {number}: {column!r} stands there twice")
    missing = [column for column in _REQUIRED if column not in columns]
    if missing:
        raise ConfigError(f"line 1: the column {missing[0]!r} is missing")
    return columns


def _layer(columns: Sequence[str], line: int, row: Sequence[str]) -> Layer:
    if len(row) != len(columns):
        raise ConfigError(f"line {line}: {len(row)} cells, but the header has {len(columns)} columns")
    values: dict[str, float] = {}
    name = ""
    for number, (column, cell) in enumerate(zip(columns, row, strict=True), start=1):
        where = f"line {line}, column {number} ({column})"
        if column == "name":
            name = cell.strip()
            if not name:
                raise ConfigError(f"{where}: the layer has no name")
            continue
        try:
            value = float(cell)
        except ValueError:
            raise ConfigError(f"{where}: {cell!r} is not a number") from None
        if not math.isfinite(value) or value < 0:
            raise ConfigError(f"{where}: {cell!r} must be finite and not negative")
        values[column] = value
    if values.get("act_w", 0.0) > values.get("act", 0.0):
        number = columns.index("act_w") + 1
        raise ConfigError(f"line {line}, column {number} (act_w): {values['act_w']:g} is a part of act, and exceeds it")
    return Layer(name, **values)
