"""What the two ranks of a pipeline check of a split output layer: run by test_megatron_vocab.py under torchrun."""

import contextlib
import sys
import tempfile

import cpu_shim
import pytest
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, tensor_parallel
from megatron.core import parallel_state as mpu
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.transformer_config import TransformerConfig

import pipert.megatron
from pipert.errors import PipertError
from pipert.megatron.install import finish
from pipert.megatron.output_layer import OutputLayerShard

P, VOCAB, HIDDEN, LENGTH, SAMPLES = 2, 31, 16, 8, 3


class Timers:
    """Megatron's, which count what is between their two ends."""

    def __init__(self):
        self.running, self.counts = set(), {}

    def __call__(self, name, log_level=None):
        return Timer(self, name)


class Timer:
    def __init__(self, timers, name):
        self.timers, self.name = timers, name

    def start(self, barrier=False):
        assert self.name not in self.timers.running, self.name
        self.timers.running.add(self.name)

    def stop(self, barrier=False):
        self.timers.running.remove(self.name)
        self.timers.counts[self.name] = self.timers.counts.get(self.name, 0) + 1


def build(*, tied=False, **options):
    """Build this rank's stage, with the same numbers each time."""
    torch.manual_seed(dist.get_rank())
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    config = TransformerConfig(
        num_layers=2,
        hidden_size=HIDDEN,
        num_attention_heads=2,
        pipeline_model_parallel_size=P,
        pipeline_dtype=torch.float32,
        gradient_accumulation_fusion=False,
        bias_dropout_fusion=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        **options,
    )
    return GPTModel(
        config,
        get_gpt_layer_local_spec(),
        vocab_size=VOCAB,
        max_sequence_length=LENGTH,
        pre_process=mpu.is_pipeline_first_stage(),
        post_process=mpu.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=tied,
        position_embedding_type="rope",
    )


@contextlib.contextmanager
def split():
    pipert.megatron.install("1f1b", vocab_parallel="2", timeout_ms=20_000)
    try:
        yield
    finally:
        with contextlib.suppress(PipertError):
            finish()
        pipert.megatron.uninstall()


def gathered(value):
    values = [None] * P
    dist.all_gather_object(values, value)
    return values


def whole_weight(model):
    """Put the shards of all ranks together."""
    rows = torch.cat(gathered(model.output_layer.weight.detach()))
    assert not rows[VOCAB:].any(), "padding has values"
    return rows[:VOCAB]


def check_initial_rows():
    """The shards are the rows of the weight that the last stage would have had, and all else is as without them."""
    plain = build()
    with split():
        model = build()
    assert isinstance(model.output_layer, OutputLayerShard)
    assert list(model.output_layer.weight.shape) == [16, HIDDEN]
    expected = gathered(plain.output_layer.weight.detach() if plain.post_process else None)[-1]
    assert torch.equal(whole_weight(model), expected)
    ours, theirs = dict(model.named_parameters()), dict(plain.named_parameters())
    assert ours.keys() == theirs.keys() | {"output_layer.weight"}
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if name != "output_layer.weight")
    marks = list(vars(plain.output_layer.weight)) if plain.post_process else []
    assert set(marks) <= set(vars(model.output_layer.weight)), marks


def check_checkpoints():
    """What the split model saves, the unsplit one reads, and the other way around."""
    for tied in (False, True):
        plain = build(tied=tied)
        with split():
            model = build(tied=tied)
        assert ("output_layer.weight" in dict(model.named_parameters())) != tied
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
            if not tied and dist.get_rank() == P - 1:
                model.output_layer.weight[-1] = 0
        with split():
            copy_through_files(model, plain)
        assert_equal(model, plain, tied)
        with split():
            fresh = build(tied=tied)
            copy_through_files(plain, fresh)
        assert_equal(fresh, plain, tied)


def copy_through_files(source, destination):
    folder = gathered(tempfile.mkdtemp() if dist.get_rank() == 0 else None)[0]
    dist_checkpointing.save(source.sharded_state_dict(), folder)
    destination.load_state_dict(dist_checkpointing.load(destination.sharded_state_dict(), folder))


def assert_equal(split_model, plain, tied):
    theirs = dict(plain.named_parameters())
    for name, parameter in split_model.named_parameters():
        assert name == "output_layer.weight" or torch.equal(parameter, theirs[name]), name
    if not tied:
        expected = gathered(plain.output_layer.weight.detach() if plain.post_process else None)[-1]
        assert torch.equal(whole_weight(split_model), expected)


def call(model, forward_step, **arguments):
    return get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter(range(4)),
        model=model,
        num_microbatches=4,
        seq_length=LENGTH,
        micro_batch_size=SAMPLES,
        **arguments,
    )


def batch(number):
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randint(VOCAB, (SAMPLES, LENGTH + 1), generator=generator)
    mask = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).triu(1)
    return (tokens[:, :-1], torch.arange(LENGTH).expand(SAMPLES, -1), mask), tokens[:, 1:].contiguous()


def loss_of(losses, non_loss_data=False):
    if non_loss_data:
        return losses.detach().clone()
    weights = torch.linspace(0, 2, losses.numel()).view_as(losses)  # another gradient for each token
    return (losses * weights).sum(), {"losses": losses.detach().clone()}


def plain_step(iterator, model):
    inputs, labels = batch(next(iterator))
    labels[0, 0] = -100  # which Megatron gives no gradient of its own; its weight is 0
    return model(*inputs, labels=labels), loss_of


def check_gradients():
    """Without data parallelism gradients go to ``grad``, of each token by its own weight; also of samples together."""
    options = {"grad_scale_func": lambda loss: 8 * loss}
    plain = build(**options)
    pipert.megatron.install("1f1b")
    expected = call(plain, plain_step)
    finish()
    pipert.megatron.uninstall()
    with split():
        timers = Timers()
        model = build(timers=timers, **options)
        for _ in range(2):
            found = call(model, plain_step)
        assert timers.counts["backward-compute"] == 8
        assert timers.counts["forward-compute"] == (16 if model.post_process else 8)  # the loss's is apart
        evaluated = call(model, plain_step, forward_only=True)
        collected = call(model, plain_step, forward_only=True, collect_non_loss_data=True)
        assert not timers.running
    assert all(torch.equal(a["losses"], b) for a, b in zip(evaluated, collected, strict=True))
    assert len(found) == len(expected) == len(evaluated)
    for a, b, c in zip(expected, found, evaluated, strict=True):
        assert torch.equal(b["losses"], c["losses"])
        a["losses"][0, 0] = b["losses"][0, 0] = 0.0
        torch.testing.assert_close(b["losses"], a["losses"], rtol=1e-5, atol=1e-5)
    theirs = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        if name != "output_layer.weight":
            torch.testing.assert_close(parameter.grad / 2, theirs[name].grad, rtol=1e-4, atol=1e-6)
    rows = torch.cat(gathered(model.output_layer.weight.grad / 2))
    whole = gathered(plain.output_layer.weight.grad if plain.post_process else None)[-1]
    torch.testing.assert_close(rows[:VOCAB], whole, rtol=1e-4, atol=1e-6)
    assert not rows[VOCAB:].any()


def changed_step(iterator, model):
    output, loss_func = plain_step(iterator, model)
    return (output if not model.post_process else output * 2), loss_func


def step_without_labels(iterator, model):
    inputs, _ = batch(next(iterator))
    return model(*inputs), loss_of


def step_with_two_calls(iterator, model):
    inputs, labels = batch(next(iterator))
    model(*inputs, labels=labels)
    return model(*inputs, labels=labels), loss_of


def check_refusals():
    """Each is named on the rank of the last stage, and ends the other one, too."""
    cases = {
        changed_step: "1F0.*returns something else than the model did",
        step_without_labels: "1F0.*calls the model without labels",
        step_with_two_calls: "1F0.*calls the model more than once",
    }
    for forward_step, message in cases.items():
        with split():
            refused(lambda: call(build(), forward_step), message)  # noqa: B023
    with split():
        refused(lambda: call(plain_models[0], plain_step), "built after pipert is installed", everywhere=True)
        model = build()
        if model.post_process:
            model.set_input_tensor(torch.zeros(LENGTH, SAMPLES, HIDDEN))
            refused(lambda: model(*batch(0)[0]), "only forward_step_func can call it", everywhere=True)
        dist.barrier()


def refused(function, message, *, everywhere=False):
    with pytest.raises(PipertError, match=message if everywhere or dist.get_rank() == P - 1 else "rank 1"):
        function()


if __name__ == "__main__":
    cpu_shim.install()
    filesystem_async._process_memory = lambda: 0  # it asks psutil, for a line in a log
    dist.init_process_group("gloo")
    mpu.initialize_model_parallel(pipeline_model_parallel_size=P)
    plain_models = [build()]
    for check in (check_initial_rows, check_checkpoints, check_gradients, check_refusals):
        print(check.__name__, file=sys.stderr, flush=True)
        check()
    dist.destroy_process_group()
