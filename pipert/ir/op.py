"""One instruction of a program or plan, and its text."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipert.errors import PlanError
from pipert.ops import LaneKind, OpKind, Scope

_NUMBER = r"(0|[1-9][0-9]{0,8})"
_PLAIN = {kind.text: kind for kind in OpKind if kind.has_microbatch and kind.has_place}
del _PLAIN[OpKind.OVERLAP_F_B.text]
_PLAIN_TEXT = re.compile(_NUMBER + f"({'|'.join(_PLAIN)})" + _NUMBER)
_WHOLE = {kind.text: kind for kind in OpKind if not kind.has_microbatch}
_WHOLE_TEXT = re.compile(_NUMBER + f"({'|'.join(_WHOLE)})")
_MEETING = {kind.text: kind for kind in OpKind if not kind.has_place}
_MEETING_TEXT = re.compile(f"({'|'.join(_MEETING)})" + _NUMBER)
_PAIR_TEXT = re.compile(rf"\(([^;()]*);([^;()]*)\){OpKind.OVERLAP_F_B.text}")


@dataclass(frozen=True, slots=True)
class Op:
    """One op: what is done, on which stage, for which microbatch.

    ``str(op)`` and :meth:`parse` are inverse to each other.

    Attributes:
        kind: the row of the op table.
        stage: for a transfer the stage that produces (SEND) or consumes (RECV); for a kind of a rank, or of its shard
            of the vocabulary, the rank; -1 of a kind that all ranks run together.
        microbatch: its index, from 0; -1 of a kind that is for a stage or a rank as a whole.
        parts: the two compute ops of an ``OVERLAP_F_B``, in the order in which they run; else empty.
            The pair's own stage and microbatch are those of its first part.
    """

    kind: OpKind
    stage: int
    microbatch: int = -1
    parts: tuple[Op, ...] = ()

    def __post_init__(self) -> None:
        if self.stage < 0 or self.microbatch < 0:
            self._check_numbers()
        elif not self.kind.has_microbatch:
            scope = self.kind.scope.value
            raise PlanError(f"{self.kind.text} is for a {scope} as a whole, not for microbatch {self.microbatch}")
        elif not self.kind.has_place:
            raise PlanError(f"{self.kind.text} is for all ranks at once, so its stage is -1, not {self.stage}")
        if self.kind is OpKind.OVERLAP_F_B:
            self._check_parts()
        elif self.parts:
            raise PlanError(f"only {OpKind.OVERLAP_F_B.text} has parts, {self} does not", op=str(self))

    def _check_numbers(self) -> None:
        place_is_right = self.stage >= 0 if self.kind.has_place else self.stage == -1
        microbatch_is_right = self.microbatch >= 0 if self.kind.has_microbatch else self.microbatch == -1
        if not (place_is_right and microbatch_is_right):
            raise PlanError(f"an op's stage and microbatch start at 0, not {self.stage} and {self.microbatch}")

    def _check_parts(self) -> None:
        plain = [
            part.kind.lane is LaneKind.COMPUTE and part.kind.scope is Scope.MICROBATCH and not part.parts
            for part in self.parts
        ]
        if plain != [True, True]:
            texts = ", ".join(map(str, self.parts)) or "none"
            raise PlanError(f"{self.kind.text} needs two compute ops as its parts, not {texts}")
        if (self.stage, self.microbatch) != (self.parts[0].stage, self.parts[0].microbatch):
            raise PlanError(f"{self}: its stage and microbatch must be those of its first part", op=str(self))

    @classmethod
    def pair(cls, first: Op, second: Op) -> Op:
        """Make the ``OVERLAP_F_B`` of two compute ops."""
        return cls(OpKind.OVERLAP_F_B, first.stage, first.microbatch, (first, second))

    @property
    def unpacked(self) -> tuple[Op, ...]:
        """What is done for a microbatch of a stage, one by one: the parts of a pair, or the op itself; else nothing."""
        return self.parts or ((self,) if self.kind.scope is Scope.MICROBATCH else ())

    def __str__(self) -> str:
        if self.parts:
            return f"({';'.join(map(str, self.parts))}){self.kind.text}"
        return f"{_number(self.stage)}{self.kind.text}{_number(self.microbatch)}"

    @classmethod
    def parse(cls, text: str) -> Op:
        """Read the op that ``text`` stands for, the whole of it.

        It reads like ``2F0``, ``3SEND_B1``, ``(2F3;5B1)OVERLAP_F_B``, ``2UNSHARD`` or ``VBCAST0``.

        Raises:
            PlanError: the text is no op; numbers have ASCII digits and no leading zeros.
        """
        pair = _PAIR_TEXT.fullmatch(text)
        if pair:
            return cls.pair(cls.parse(pair[1]), cls.parse(pair[2]))
        plain = _PLAIN_TEXT.fullmatch(text)
        if plain:
            return cls(_PLAIN[plain[2]], int(plain[1]), int(plain[3]))
        meeting = _MEETING_TEXT.fullmatch(text)
        if meeting:
            return cls(_MEETING[meeting[1]], -1, int(meeting[2]))
        whole = _WHOLE_TEXT.fullmatch(text)
        if not whole:
            raise PlanError(f"not an op: {text!r} (an op reads like 2F0, 3SEND_B1 or (2F3;5B1)OVERLAP_F_B)", op=text)
        return cls(_WHOLE[whole[2]], int(whole[1]))


def _number(number: int) -> str:
    return str(number) if number >= 0 else ""
