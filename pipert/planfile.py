"""Plan files: one JSON object that holds a plan, its version and its hash (``pipert/plan.schema.json``).

A plan file is untrusted: everything that it says is checked, here what surrounds the plan and in the core the plan.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from pipert.errors import ConfigError, PlanError
from pipert.plan import Plan, canonical_json

FORMAT = "pipert-plan"
VERSION = 2
MAX_BYTES = 1 << 29
"""A plan of one op is about 50 bytes; nobody has a plan of ten million ops."""


def save(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write ``plan`` to ``path``, whole or not at all.

    Raises:
        ConfigError: the file cannot be written.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        partial.write_text(dumps(plan), encoding="ascii")
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigError(f"cannot write the plan to {target}: {error.strerror}") from error


def dumps(plan: Plan) -> str:
    """Return the text of a plan file."""
    content = plan.to_dict()
    whole = {"format": FORMAT, "version": VERSION, "sha256": plan_hash(content), "plan": content}
    return canonical_json(whole) + "\n"


def load(path: str | os.PathLike[str]) -> Plan:
    """Read the plan that :func:`save` wrote to ``path``, and verify it.

    Raises:
        ConfigError: the file cannot be read.
        PlanError: it is no plan file, of another version, changed, or holds no valid plan.
    """
    try:
        content = _parse(_read(Path(path)))
        _check(content)
        return Plan.from_dict(content["plan"])
    except PlanError as error:
        raise PlanError(f"{os.fspath(path)}: {error}", rank=error.rank, op=error.op) from error


def plan_hash(plan: Mapping[str, Any]) -> str:
    """Return the sha256, in hexadecimal, of a plan object's canonical JSON."""
    return hashlib.sha256(canonical_json(plan).encode("ascii")).hexdigest()


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise PlanError(f"a plan file has at most {MAX_BYTES} bytes, this has more")
        return data.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the plan {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PlanError(f"not UTF-8 at byte {error.start}") from error


def _parse(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise PlanError(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except RecursionError:
        raise PlanError("nested too deeply") from None
    except ValueError as error:  # PlanError is one, and says what it is about
        raise error if isinstance(error, PlanError) else PlanError(f"not JSON: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise PlanError(f"duplicate key {max(keys, key=keys.count)!r}")
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise PlanError(f"not JSON: {name}")


def _check(content: Any) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise PlanError(f'not a plan file: expected an object with "format": "{FORMAT}"')
    version = content.get("version")
    if version != VERSION:
        hint = "; make it anew with pipert plan" if isinstance(version, int) and 0 < version < VERSION else ""
        raise PlanError(f"expected plan file version {VERSION}, found {version!r}{hint}")
    if content.keys() != {"format", "version", "sha256", "plan"}:
        raise PlanError(f"expected the keys format, version, sha256 and plan, found {', '.join(sorted(content))}")
    if not isinstance(content["plan"], dict):
        raise PlanError("expected an object under plan")
    expected, found = content["sha256"], plan_hash(content["plan"])
    if expected != found:
        raise PlanError(f"the plan was changed after it was written: expected sha256 {expected!r}, found {found!r}")
