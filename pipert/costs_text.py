"""Costs as text: ``F=1,I=1,W=1`` on a command line, and TOML files."""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipert.costs import SIZE_NAMES, VOCAB_NAMES, Costs, Link, StageCosts, VocabCosts, check_size, check_sizes
from pipert.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LISTS = ("microbatch_scale", "rank_speed")
_STAGE = (*SIZE_NAMES, "microbatch_scale")
_COMMON = ("p2p", "bandwidth", "message_bytes", "host_cores", "rank_speed", "overlap")
_UNSAID = {"bandwidth": (None,), "message_bytes": (0,), "host_cores": (None,), "rank_speed": ((),), "overlap": (1,)}
_LINK = ("src", "dst", "latency", "bandwidth")
_TIMES = ("F", "I", "W", "B")


def parse(text: str) -> Costs:
    """See `Costs.parse`."""
    items = [item.strip() for item in text.split(",") if item.strip()]
    pairs = [_split_item(item) for item in items]
    repeated = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if repeated:
        raise ConfigError(f"costs: {repeated[0]!r} is given more than once")
    values = dict(pairs)
    _check_names(tuple(values), _STAGE + _COMMON + VOCAB_NAMES)
    return _per_rank(values)


def load(path: str | os.PathLike[str]) -> Costs:
    """See `Costs.load`."""
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            values: dict[str, Any] = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read costs file {name!r}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"costs file {name!r} is not TOML: {error}") from error
    try:
        return _from_file(values)
    except ConfigError as error:
        raise ConfigError(f"costs file {name!r}: {error}") from error


def dumps(costs: Costs) -> str:
    """Write costs as the text of a file that `load` reads."""
    lines = [_toml(name, getattr(costs, name)) for name in _COMMON if getattr(costs, name) not in _UNSAID.get(name, ())]
    if costs.vocab is not None:
        lines += [_toml(name, value) for name, value in dataclasses.asdict(costs.vocab).items()]
    stages = [dataclasses.asdict(stage) for stage in costs.stages]
    for stage in stages:
        if not costs.whole_rank:
            lines += ["", "[[stage]]"]
        lines += [_toml(name, value) for name, value in stage.items() if value not in (None, ())]
    for (source, destination), link in costs.links.items():
        values = {"src": source, "dst": destination, **dataclasses.asdict(link)}
        lines += ["", "[[link]]", *(_toml(name, value) for name, value in values.items() if value is not None)]
    return "\n".join(lines).strip() + "\n"


def _toml(name: str, value: float | Sequence[float]) -> str:
    return f"{name} = {list(value) if isinstance(value, Sequence) else value!r}"


def _split_item(item: str) -> tuple[str, float | tuple[float, ...]]:
    name, equals, value = item.partition("=")
    if not equals:
        raise ConfigError(f"costs: {item!r} is not NAME=NUMBER")
    name = name.strip()
    try:
        if name in _LISTS:
            return name, tuple(map(float, value.split(":")))
        return name, float(value)
    except ValueError:
        what = "a list of numbers like 1:0.5:1" if name in _LISTS else "a number"
        raise ConfigError(f"costs: {value.strip()!r} in {item!r} is not {what}") from None


def _check_names(names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {nearest[0]!r}?)" if nearest else f"; known are {', '.join(known)}"
            raise ConfigError(f"unknown cost {name!r}{hint}")


def _complete(values: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse a set of times of which a part is missing; where only F and B are known, halve B."""
    for name, value in values.items():
        (check_sizes if name in _LISTS else check_size)(name, value)
    given = {name for name in _TIMES if name in values}
    if given == {"F", "B"}:
        return {**values, "I": values["B"] / 2, "W": values["B"] / 2}
    missing = [name for name in ("F", "I", "W") if given and name not in given]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} must be given with {', '.join(sorted(given))}: times have one unit")
    return dict(values)


def _per_rank(values: Mapping[str, Any], links: Mapping[tuple[int, int], Link] | None = None) -> Costs:
    rest, vocab = _without_vocab(values)
    if vocab is None and not any(name in rest for name in _TIMES):  # then all times are 1, theirs too
        vocab = VocabCosts()
    return Costs.per_rank(**_complete(rest), links=links, vocab=vocab)


def _without_vocab(values: Mapping[str, Any]) -> tuple[dict[str, Any], VocabCosts | None]:
    """Split off the costs of the vocabulary; None where there are none."""
    given = {name: value for name, value in values.items() if name in VOCAB_NAMES}
    rest = {name: value for name, value in values.items() if name not in given}
    missing = [name for name in ("S", "T") if given and name not in given]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} must be given with {', '.join(given)}: times have one unit")
    return rest, VocabCosts(**given) if given else None


def _from_file(values: Mapping[str, Any]) -> Costs:
    tables = {name: _tables(name, values[name]) for name in ("stage", "link") if name in values}
    top = {name: value for name, value in values.items() if name not in tables}
    links = dict(_within(f"[[link]] {index}", _link, table) for index, table in enumerate(tables.get("link", [])))
    if len(links) != len(tables.get("link", [])):
        raise ConfigError("two [[link]] tables have the same src and dst")
    if "stage" not in tables:
        _check_names(tuple(top), _STAGE + _COMMON + VOCAB_NAMES)
        return _per_rank(top, links)
    _check_names(tuple(top), (*_COMMON, "microbatch_scale", *VOCAB_NAMES))
    top, vocab = _without_vocab(top)
    for_all = {"microbatch_scale": top.pop("microbatch_scale")} if "microbatch_scale" in top else {}
    stages = [
        _within(f"[[stage]] {index}", _stage, {**for_all, **table}) for index, table in enumerate(tables["stage"])
    ]
    timed = ["F" in table for table in tables["stage"]]
    if any(timed) and not all(timed):
        raise ConfigError(f"[[stage]] {timed.index(False)} lacks F, which [[stage]] {timed.index(True)} has")
    return Costs.per_stage(stages, **top, links=links, vocab=vocab)


def _tables(name: str, tables: Any) -> list[dict[str, Any]]:
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{name!r} must be [[{name}]] tables")
    return tables


def _within(where: str, make: Any, table: Mapping[str, Any]) -> Any:
    try:
        return make(table)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _stage(table: Mapping[str, Any]) -> StageCosts:
    _check_names(tuple(table), _STAGE)
    return StageCosts(**_complete(table))


def _link(table: Mapping[str, Any]) -> tuple[tuple[int, int], Link]:
    _check_names(tuple(table), _LINK)
    for name in ("src", "dst"):
        if name not in table:
            raise ConfigError(f"{name} is missing: a link leads from rank src to rank dst")
        if type(table[name]) is not int:
            raise ConfigError(f"{name} must be a rank, not {table[name]!r}")
    return (table["src"], table["dst"]), Link(table.get("latency"), table.get("bandwidth"))
