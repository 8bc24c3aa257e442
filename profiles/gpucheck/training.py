"""Two training runs: a GPT of 1 B parameters in one process, and a smaller one in two, compared bit by bit."""

from __future__ import annotations

import json
from typing import Any

from gpucheck.place import Done, Place
from gpucheck.rows import Row

LAYERS, DIM, SEQ_LEN, BATCH_SIZE, MICROBATCHES = 20, 2048, 1024, 4, 8
NUM_PARAMETERS = 12 * LAYERS * DIM**2 + 256 * DIM
"""Of the matrices; the embedding is tied."""

LARGE = [
    "--one-process", "--schedule=zb-v", "--ranks=2", f"--microbatches={MICROBATCHES}", f"--layers={LAYERS}",
    f"--dim={DIM}", "--heads=16", f"--seq-len={SEQ_LEN}", f"--batch-size={BATCH_SIZE}", "--dtype=bf16", "--steps=8",
    "--lr=3e-4", "--warmup=2",
]  # fmt: skip
TWO_RANKS = [
    "--schedule=zb-v", "--ranks=2", "--microbatches=8", "--layers=8", "--dim=512", "--heads=8", "--seq-len=256",
    "--batch-size=4", "--dtype=bf16", "--steps=5", "--verify",
]  # fmt: skip


def train(place: Place) -> list[Row]:
    """Run both, and keep the trace and the timeline of the large one."""
    done, summary = _train(place, "large", LARGE, share=0.6)
    rows = [Row("train 1 B, one process", *judge_large(done, summary), done.seconds)]
    if rows[0].passed:
        folder = place.work / "runs" / "large"
        for name in ("trace.json", "timeline.html"):
            problem = place.keep(folder / name, f"train-{name}")
            rows += [] if problem is None else [Row(f"  {name}", False, problem)]
    done, summary = _train(place, "two-ranks", TWO_RANKS)
    return [*rows, Row("train, 2 processes over ipc", *judge_two_ranks(done, summary), done.seconds)]


def _train(place: Place, name: str, options: list[str], share: float = 1.0) -> tuple[Done, dict[str, Any] | None]:
    command = ["-m", "pipert", "train", "--device=cuda", f"--name={name}", *options]
    summary = place.work / "runs" / name / "summary.json"
    summary.unlink(missing_ok=True)
    done = place.python(*command, share=share)
    found = json.loads(summary.read_text()) if summary.exists() else None
    place.results.setdefault("training", {})[name] = {"command": ["pipert", *command[2:]], "summary": found}
    return done, found


def judge_large(done: Done, summary: dict[str, Any] | None) -> tuple[bool, str]:
    """Return whether the large run learned, and what to say of it."""
    if done.status != 0 or summary is None:
        return False, done.why
    tokens_per_second = summary["tokens_per_second"]
    teraflops = 6 * NUM_PARAMETERS * tokens_per_second / 1e12
    detail = (
        f"{NUM_PARAMETERS / 1e9:.2f} B parameters in 4 stages: step {summary['step_time_ms']:.0f} ms "
        f"(predicted {summary['predicted_step_time_ms']:.0f}), {tokens_per_second:,.0f} tokens/s, "
        f"{teraflops:.0f} TFLOP/s of matrices, loss {summary['first_loss']:.2f} → {summary['last_loss']:.2f}"
    )
    return summary["last_loss"] < summary["first_loss"], detail


def judge_two_ranks(done: Done, summary: dict[str, Any] | None) -> tuple[bool, str]:
    """Return whether two processes computed what one does, and what to say of it."""
    if done.status != 0 or summary is None:
        return False, done.why
    equal = summary["bitwise_equal"] is True
    verdict = "every bit that of one process" if equal else "not the bits of one process"
    return equal, f"{verdict}; step {summary['step_time_ms']:.0f} ms, the GPU shared in turns"
