"""The function that stands in for Megatron's forward-backward functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipert.megatron.call import Call, chunks_of, groups_of, iterators_of
from pipert.megatron.options import Options
from pipert.megatron.pipelines import Pipelines


def make_forward_backward(options: Options) -> tuple[Callable[..., list[Any]], Callable[[], None]]:
    """Return a function with the signature of Megatron's ``forward_backward_pipelining_*`` functions.

    The second function returned ends the run: it writes its files and closes its engines, on all ranks together.
    """
    pipelines = Pipelines(options)

    def forward_backward(
        *,
        forward_step_func: Callable[..., Any],
        data_iterator: Any,
        model: Any,
        num_microbatches: int,
        seq_length: int,
        micro_batch_size: int,
        decoder_seq_length: int | None = None,
        forward_only: bool = False,
        collect_non_loss_data: bool = False,
        first_val_step: bool | None = None,
        adjust_tensor_shapes_fn: Callable[..., Any] | None = None,
        p2p_communicator: Any = None,
        pg_collection: Any = None,
        force_all_reduce: bool | None = False,
    ) -> list[Any]:
        """Run every microbatch forward, and backward unless ``forward_only``; see Megatron's documentation.

        Returns:
            What the loss function returned as data, per microbatch, on the rank that holds the last stage; else [].

        Raises:
            ConfigError: something is asked for that is refused, on every rank before the first op.
            StageError: a function of the script raised; rank and op are named.
            PeerLost: another rank failed.
        """

        def make_call() -> Call:
            from megatron.core.utils import get_model_config

            chunks = chunks_of(model)
            return Call(
                config=get_model_config(chunks[0]),
                chunks=chunks,
                data_iterators=iterators_of(data_iterator, len(chunks)),
                groups=groups,
                forward_step_func=forward_step_func,
                num_microbatches=num_microbatches,
                seq_length=seq_length,
                micro_batch_size=micro_batch_size,
                forward_only=forward_only,
                collect_non_loss_data=collect_non_loss_data,
                first_val_step=first_val_step,
                adjust_tensor_shapes_fn=adjust_tensor_shapes_fn,
                force_all_reduce=bool(force_all_reduce),
                splits_vocabulary=options.splits_vocabulary,
            )

        groups = groups_of(p2p_communicator, pg_collection)
        return pipelines.run(groups, make_call)

    return forward_backward, pipelines.close
