"""A toy pipeline of MegatronModules, and one call of a forward-backward function on it."""

import contextlib
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.enums import ModelType
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import checkpoint
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.moe.router import MoEAuxLossAutoScaler
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn

WIDTH, LENGTH, BATCH, MICROBATCHES = 8, 4, 2, 4


class Chunk(MegatronModule):
    """Two linear layers and dropout; it notes what it is told."""

    def __init__(self, config, stage, case):
        super().__init__(config)
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        generator = torch.Generator().manual_seed(stage)
        for parameter in self.parameters():
            parameter.data.normal_(0, 0.5, generator=generator)
            parameter.requires_grad_(stage not in case.frozen)
        self.model_type = case.model_type
        self.decoder = SimpleNamespace(layers=[SimpleNamespace(current_microbatch=None)])
        self.post_process = SimpleNamespace()  # where Megatron looks for the buffers of a deferred output layer
        self.embedding_activation_buffer, self.grad_output_buffer = ["left over"], []
        self.share_embeddings_and_output_weights = False
        self.shared_embedding_or_output_weight = lambda: self.a.weight
        self.case, self.given, self.notes = case, None, []

    def set_input_tensor(self, tensors):
        if tensors == [None]:
            self.given = None
        else:
            parts = tensors[0].values() if isinstance(tensors[0], dict) else tensors
            self.given = sum(parts)

    def set_is_first_microbatch(self):
        self.notes.append("first microbatch")

    def forward(self, x, checkpointed=None):
        self.notes.append((self.decoder.layers[0].current_microbatch, checkpointed))
        x = x if self.given is None else self.given
        y = checkpoint(self._layers, False, x) if checkpointed else self._layers(x)
        return self.case.arrange(y)

    def _layers(self, x):
        return nn.functional.dropout(torch.tanh(self.b(self.a(x))), self.case.dropout, self.training).to(x.dtype)


@dataclass
class Case:
    """How a call differs from the plainest one.

    Attributes:
        config: options of the configuration, and
        call: arguments of the call, that are changed.
        loss_values: how many the loss function returns; 0: there is no loss function.
        lengths: of the microbatches' sequences.
        groups: give the process groups explicitly.
        frozen: stages without gradients.
        num_microbatches: of each training call, and
        evaluates: whether a forward-only call comes after each.
        schedule: pipert's.
        arrange: makes a chunk's output of its tensor; the last stage's, too.
        raises: (rank, microbatch) at which ``forward_step_func`` raises.
        without_hook: the second rank's chunk is a plain module.
    """

    config: dict = field(default_factory=dict)
    call: dict = field(default_factory=dict)
    num_chunks: int = 1
    loss_values: int = 2
    lengths: tuple = (LENGTH,) * MICROBATCHES
    groups: bool = False
    frozen: tuple = ()
    dropout: float = 0.2
    num_microbatches: tuple = (MICROBATCHES, MICROBATCHES)
    evaluates: bool = False
    schedule: str | None = None
    model_type: ModelType = ModelType.encoder_or_decoder
    arrange: object = staticmethod(lambda y: y)
    raises: tuple | None = None
    without_hook: bool = False


class Toy:
    """The chunks of this rank under a case, and what was observed."""

    def __init__(self, case, is_ours):
        self.case, self.is_ours, self.events, self.is_held_back = case, is_ours, [], False
        rank, size = dist.get_rank(), dist.get_world_size()
        chunks = case.num_chunks
        self.config = TransformerConfig(
            num_layers=size * chunks,
            hidden_size=WIDTH,
            num_attention_heads=2,
            pipeline_model_parallel_size=size,
            virtual_pipeline_model_parallel_size=chunks if chunks > 1 else None,
            pipeline_dtype=torch.float32,
            moe_token_dispatcher_type="alltoall",
            variable_seq_lengths=len(set(case.lengths)) > 1,
            overlap_p2p_comm=chunks > 1,
            batch_p2p_comm=chunks == 1,
        )
        self.config.finalize_model_grads_func = self._finalize
        for name, value in case.config.items():
            setattr(self.config, name, value(self) if callable(value) else value)
        self.chunks = [Chunk(self.config, chunk * size + rank, case) for chunk in range(chunks)]
        for index, chunk in enumerate(self.chunks):
            for parameter in chunk.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(partial(self._arrived, index))
        generator = torch.Generator().manual_seed(99)
        lengths = case.lengths * max(case.num_microbatches)
        self.data = [torch.randn(length, BATCH, WIDTH, generator=generator) for length in lengths]

    def note(self, name, *args, **kwargs):
        self.events.append((name, *args, *sorted(kwargs.items())))

    @contextlib.contextmanager
    def no_sync(self):
        """Stand in for data parallelism's ``no_sync``."""
        self.is_held_back = True
        yield
        self.is_held_back = False

    def grad_sync(self, chunk):
        """Return a ``grad_sync_func``, and for parameters likewise."""
        return lambda parameters: self.note("grad sync", chunk, len(list(parameters)), self.is_held_back)

    def param_sync(self, chunk):
        return lambda parameters: self.note("param sync", chunk, len(list(parameters)))

    def timers(self, name, log_level=None):
        """Stand in for Megatron's timers."""
        return SimpleNamespace(
            start=lambda barrier=False: self.note("start", name, log_level, barrier),
            stop=lambda: self.note("stop", name),
        )

    def _arrived(self, chunk, parameter):
        self.note("gradient", chunk, self.is_held_back)

    def run(self, forward_backward):
        """Return what the calls returned, the gradients, and the events and notes."""
        torch.manual_seed(7 + dist.get_rank())
        returned = []
        for number in self.case.num_microbatches:
            returned.append(self._call(forward_backward, num_microbatches=number, **self.case.call))
            if self.case.evaluates:
                with torch.no_grad():
                    returned.append(self._call(forward_backward, forward_only=True, **self.case.call))
        grads = [parameter.grad for chunk in self.chunks for parameter in chunk.parameters()]
        return returned, grads, [chunk.notes for chunk in self.chunks], self.events

    def _call(self, forward_backward, **changes):
        arguments = {
            "forward_step_func": self._forward_step,
            "data_iterator": [iter(self.data) for _ in self.chunks],
            "model": [nn.Linear(WIDTH, WIDTH)] if self.case.without_hook and dist.get_rank() == 1 else self.chunks,
            "num_microbatches": MICROBATCHES,
            "seq_length": LENGTH,
            "micro_batch_size": BATCH,
        }
        if self.case.groups:
            arguments |= self._explicit_groups()
        return forward_backward(**{**arguments, **changes})

    def _forward_step(self, data_iterator, model, *checkpointed):
        data = next(data_iterator)
        if self.case.raises == (dist.get_rank(), model.decoder.layers[0].current_microbatch):
            raise ValueError("a bad batch")
        output = model(data, *checkpointed)
        return output, None if self.case.loss_values == 0 else self._loss

    def _loss(self, output, non_loss_data=False):
        if non_loss_data:
            return {"mean": output.detach().mean()}
        loss = self.loss_of(output)
        data = {"loss": loss.detach().clone()}
        if self.case.loss_values == 3:
            return loss, torch.tensor(output.numel(), dtype=torch.int), data
        if self.case.loss_values == 2:
            return loss, data
        return (loss,) * self.case.loss_values

    @staticmethod
    def loss_of(output):
        parts = output.values() if isinstance(output, dict) else output if isinstance(output, tuple) else [output]
        return sum(part.square().sum() for part in parts)

    def _finalize(self, chunks, num_tokens, pg_collection=None, force_all_reduce=None):
        groups = sorted(name for name in vars(pg_collection))
        tokens = None if num_tokens is None else int(num_tokens)
        scale = MoEAuxLossAutoScaler.main_loss_backward_scale
        scale = None if scale is None else float(scale)
        self.note("finalize", len(chunks), tokens, tuple(groups), bool(force_all_reduce), scale)

    def _explicit_groups(self):
        collection = ProcessGroupCollection()
        collection.tp = parallel_state.get_tensor_model_parallel_group()
        collection.cp = parallel_state.get_context_parallel_group()
        collection.embd = collection.pos_embd = None
        collection.pp = parallel_state.get_pipeline_model_parallel_group()
        collection.dp_cp = parallel_state.get_data_parallel_group(with_context_parallel=True)
        return {"p2p_communicator": P2PCommunicator(collection.pp, self.config), "pg_collection": collection}
