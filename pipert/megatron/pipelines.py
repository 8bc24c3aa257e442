"""The pipelines of a script: one for each model and number of microbatches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from pipert.errors import PipertError
from pipert.megatron import contract, placement
from pipert.megatron.call import Call, Groups
from pipert.megatron.options import Options
from pipert.megatron.output_layer import output_layer_of
from pipert.megatron.pipeline import Pipeline
from pipert.megatron.run_files import RunFiles
from pipert.megatron.schedule import make_plan
from pipert.rendezvous import Group, agree, host_group

_MAX_PIPELINES = 4  # of training, of evaluation, of a batch size that grows

_Key = tuple[int, ...]


class Pipelines:
    """Runs the calls of a script."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._groups: dict[int, Group] = {}
        self._pipelines: OrderedDict[_Key, Pipeline] = OrderedDict()
        self._files = None if options.runs is None else RunFiles(options.runs)

    def run(self, groups: Groups, make_call: Callable[[], Call]) -> list[Any]:
        """Run the call that ``make_call`` makes, on the ranks of ``groups``. Collective.

        Raises:
            PipertError: see :func:`pipert.megatron.forward_backward.make_forward_backward`.
        """
        try:
            call = make_call()
            contract.check(call)
        except PipertError as fault:
            if not self._pipelines:  # the other ranks are about to meet
                agree(self._group(groups), fault)
            raise
        timers = call.config.timers
        if timers is not None:
            timers("forward-backward", log_level=1).start(barrier=call.config.barrier_with_L1_time)
        pipeline = self._pipeline(call)
        try:
            data, result = pipeline.run(call)
        except BaseException:
            self._files = None  # writing them needs every rank
            raise
        if timers is not None:
            timers("forward-backward").stop()
        if self._files is not None and not call.forward_only:
            self._files.keep(self._group(groups), result, pipeline.device)
        return data

    def close(self) -> None:
        """Leave the files of the run, and close all pipelines. Collective."""
        if self._files is not None:
            self._files.write()
        while self._pipelines:
            self._pipelines.popitem()[1].close()
        self._groups.clear()

    def _group(self, groups: Groups) -> Group:
        key = id(groups.pipeline)
        if key not in self._groups:
            self._groups[key] = host_group(groups.pipeline)
        return self._groups[key]

    def _pipeline(self, call: Call) -> Pipeline:
        key = (id(call.groups.pipeline), call.num_microbatches, *map(id, call.chunks))
        if key not in self._pipelines:
            while len(self._pipelines) >= _MAX_PIPELINES:
                self._pipelines.popitem(last=False)[1].close()
            self._pipelines[key] = self._make(call)
        self._pipelines.move_to_end(key)
        return self._pipelines[key]

    def _make(self, call: Call) -> Pipeline:
        group = self._group(call.groups)
        fault, plan = None, None
        try:
            plan = make_plan(
                self._options,
                group.size(),
                call.num_microbatches,
                len(call.chunks),
                call.config.microbatch_group_size_per_vp_stage,
            )
            placement.check(plan, group.rank(), call.chunks)
            if call.splits_vocabulary:
                output_layer_of(call.chunks)
        except PipertError as error:
            fault = error
        agree(group, fault)
        assert plan is not None
        return Pipeline(plan, call.chunks, group, self._options.timeout_ms, splits_vocabulary=call.splits_vocabulary)
