"""``python -m pipert.megatron.verify_rank``: one rank of one of the two runs of ``pipert verify-dropin``."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipert.errors import PipertError
from pipert.megatron.install import check_version, install
from pipert.megatron.rebind import rebind
from pipert.megatron.recorder import Recorder
from pipert.megatron.script import run_script


def main(settings: dict[str, Any], script: list[str]) -> None:
    """Run ``script`` with its forward-backward function recorded.

    Args:
        settings: ``folder``, ``steps``, ``compares``, and what :func:`pipert.megatron.install` takes in ``options``.
        script: the script and its arguments.
    """
    recorder = Recorder(Path(settings["folder"]), settings["steps"], compares=settings["compares"])
    check_version()
    if settings["compares"]:
        install(**settings["options"])
    _record(recorder)
    run_script(script)


def _record(recorder: Recorder) -> None:
    from megatron.core.distributed import DistributedDataParallel
    from megatron.core.pipeline_parallel import schedules

    choose = schedules.get_forward_backward_func

    @functools.wraps(choose)
    def get_forward_backward_func(*args: Any, **kwargs: Any) -> Callable[..., list[Any]]:
        return recorder.around(choose(*args, **kwargs))

    rebind(choose, get_forward_backward_func)
    construct = DistributedDataParallel.__init__

    @functools.wraps(construct)
    def constructed(self: Any, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        recorder.begin([self])

    DistributedDataParallel.__init__ = constructed


if __name__ == "__main__":
    status = 0
    try:
        main(json.loads(sys.argv[1]), sys.argv[2:])
    except SystemExit as done:
        status = done.code if isinstance(done.code, int) else int(done.code is not None)
    except PipertError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
