"""`pipert bench vocab` without a GPU: its data, its sides against float64, its figures, and peers that are not there.

Clocks and peak memory are replaced; everything else runs, in small, on the CPU.
"""

import functools
import json
import sys
import types
import zipfile

import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from pipert.bench import vocab
from pipert.bench.figure import Unavailable
from pipert.bench.vocab import beside, exact, floor, peers, rounds, wheels
from pipert.bench.vocab.batch import random_batch
from pipert.bench.vocab.floor import Floor
from pipert.bench.vocab.ours import Ours, bounded_loss
from pipert.bench.vocab.shapes import BESIDE_PEERS, MODELS, NUM_SHARDS, SHAPES, Layer, Shape
from pipert.cli import app, bench
from pipert.errors import ConfigError

bench.register(app)

CPU = torch.device("cpu")
SMALL = Layer("small", 48, 1366)
CAPPED = Layer("capped", 40, 1004, soft_cap=5.0)


class CpuTorch:
    """torch, with the products of low precision that give fp32, which it has on CUDA alone."""

    def __getattr__(self, name):
        return getattr(torch, name)

    @staticmethod
    def mm(a, b, *, out_dtype=None, out=None):
        return torch.mm(a, b, out=out) if out_dtype is None else torch.mm(a.to(out_dtype), b.to(out_dtype))

    @staticmethod
    def addmm(total, a, b, *, out_dtype, out):
        return torch.addmm(total, a.to(out_dtype), b.to(out_dtype), out=out)


def in_turns(works, num_rounds):
    """Give each work its place as its time, in ms."""
    for work in works.values():
        work()
    return {name: [float(place)] * num_rounds for place, name in enumerate(works, start=1)}


def extra_bytes(work):
    work()
    return 3 << 20


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(rounds, "in_turns", in_turns)
    monkeypatch.setattr(rounds, "extra_bytes", extra_bytes)
    monkeypatch.setattr(beside, "_device", lambda: CPU)
    monkeypatch.setattr(floor, "torch", CpuTorch())
    monkeypatch.setitem(SHAPES, "v_128k", (Shape(SMALL, 1, 32, barred=True), Shape(SMALL, 8, 16, barred=True)))
    monkeypatch.setattr(beside, "BESIDE_PEERS", (Shape(SMALL, 1, 32, barred=True), Shape(CAPPED, 1, 24)))


class FakeDevice:
    """A CUDA device that keeps a list of what happens to it, and whose clock shows how much that is."""

    def __init__(self):
        self.log = []
        self.cuda = self
        self.held, self.most = 100, 100

    def ones(self, size, device):
        return types.SimpleNamespace(mul_=lambda factor: self.log.append(f"evict {4 * size}"))

    def Event(self, enable_timing):
        event = types.SimpleNamespace(at=None, synchronize=lambda: self.log.append("wait"))
        event.record = lambda: (setattr(event, "at", len(self.log)), self.log.append("record"))
        event.elapsed_time = lambda end: float(end.at - event.at)
        return event

    def synchronize(self):
        self.log.append("idle")

    def hold(self, num_bytes):
        self.held += num_bytes
        self.most = max(self.most, self.held)

    def reset_peak_memory_stats(self):
        self.most = self.held

    def max_memory_allocated(self):
        return self.most

    def memory_allocated(self):
        return self.held


def test_works_take_turns_with_cold_caches(monkeypatch):
    device = FakeDevice()
    monkeypatch.setattr(rounds, "torch", device)
    times = rounds.in_turns({"a": lambda: device.log.append("a"), "b": lambda: device.log.extend("bb")}, 2)
    assert times == {"a": [2.0, 2.0], "b": [3.0, 3.0]}
    a, b = (["idle", *[f"evict {1 << 30}"] * 4, "record", *work, "record", "wait"] for work in ("a", "bb"))
    assert device.log == [*a, *b] * 3  # the first round does not count


def test_extra_memory_is_what_goes_again(monkeypatch):
    device = FakeDevice()
    device.most = 10_000  # of something before
    monkeypatch.setattr(rounds, "torch", device)
    assert rounds.extra_bytes(lambda: (device.hold(50), device.hold(-30))) == 30


def test_shapes_are_those_of_the_issue():
    one, eighth = SHAPES["v_128k"]
    assert (one.num_tokens, one.layer.hidden_size, one.shard.size, one.num_shards) == (8192, 4096, 131072, 1)
    assert (eighth.num_tokens, eighth.shard.size, eighth.num_shards) == (4096, 16384, 8)
    assert 3 * one.product_flops / 790e12 * 1e3 == pytest.approx(33.40, abs=0.01)  # ms
    assert min(layer.vocab_size for layer in MODELS.values()) == 32_000
    assert max(layer.vocab_size for layer in MODELS.values()) == 256_000
    for part in MODELS:
        assert tuple(shape.num_shards for shape in SHAPES[part]) == NUM_SHARDS
        assert all(shape.shard.num_real == shape.shard.size for shape in SHAPES[part])  # no padding to measure
    assert {shape.num_shards for shape in BESIDE_PEERS} == {1}
    names = [shape.name for shapes in SHAPES.values() for shape in shapes]
    assert len(set(names)) == len(names)


def test_half_of_the_tokens_are_predicted_well():
    batch = random_batch(Shape(Layer("wide", 256, 4000), 2, 512), CPU, torch.float64)
    z_NV = batch.x_ND @ batch.w_VD.T
    local_N = batch.shard.local(batch.targets_N)
    held_N = local_N >= 0
    assert 200 < held_N.sum() < 312  # half of the vocabulary is in another shard
    target_N = z_NV.softmax(1).gather(1, local_N.clamp(min=0)[:, None])[:, 0]
    sure_N = held_N & (torch.arange(512) % 2 == 0)
    assert target_N[sure_N].median() > 0.8
    assert target_N[held_N & ~sure_N].median() < 0.01
    other = random_batch(Shape(Layer("wide", 256, 4000), 2, 512), CPU, torch.float64)
    assert torch.equal(batch.x_ND, other.x_ND)


@pytest.mark.parametrize("layer", [SMALL, CAPPED], ids=lambda layer: layer.name)
def test_the_exact_layer_is_autograds(layer, monkeypatch):
    monkeypatch.setattr(exact, "CHUNK_TOKENS", 10)  # the last chunk is a shorter one
    monkeypatch.setattr(exact, "MOST_TOKENS", 13)
    monkeypatch.setattr(exact, "MOST_ROWS", 700)
    batch = random_batch(Shape(layer, 1, 33), CPU, torch.float64)
    found, result = exact.exact(batch), peers.PEERS["torch"].side(batch).step()
    assert (found.tokens_T[0], found.tokens_T[-1], len(found.tokens_T)) == (0, 32, 13)
    assert (found.rows_R[-1], len(found.rows_R)) == (layer.vocab_size - 1, 700)
    errors = found.errors_of(result)
    assert max(errors.loss, errors.input_grad, errors.weight_grad) < 1e-6  # the peer computes its loss in fp32
    wrong = exact.Result(result.loss * 1.5, result.input_grad_ND * 1.25, result.weight_grad_VD * 0.75)
    errors = found.errors_of(wrong)
    assert (errors.loss, errors.input_grad, errors.weight_grad) == pytest.approx((0.5, 0.25, 0.25), abs=1e-5)


@pytest.mark.parametrize("layer", [SMALL, CAPPED], ids=lambda layer: layer.name)
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 2e-6), (torch.bfloat16, 8e-3)])
def test_ours_is_exact(layer, dtype, most):
    batch = random_batch(Shape(layer, 1, 33), CPU, dtype)
    ours = Ours(batch)
    errors = exact.exact(batch).errors_of(ours.step())
    assert max(errors.loss, errors.input_grad, errors.weight_grad) < most


@pytest.mark.parametrize("layer", [SMALL, CAPPED], ids=lambda layer: layer.name)
def test_ours_is_exact_in_chunks(layer):
    batch = random_batch(Shape(layer, 1, 33), CPU, torch.float32)
    chunks = functools.partial(bounded_loss, batch, 80_000)  # of 7 tokens, or 9
    errors = exact.exact(batch).errors_of(peers.by_autograd(batch, chunks)())
    assert max(errors.loss, errors.input_grad, errors.weight_grad) < 2e-6


def test_of_a_shard_the_others_are_taken_into_account():
    batch = random_batch(Shape(SMALL, 4, 40), CPU, torch.float32)
    ours = Ours(batch)
    z_NV = batch.x_ND @ batch.w_VD.T
    own = ours.score().statistics
    everybodys = ours.combined(own)
    torch.testing.assert_close(everybodys.lse_N, z_NV.repeat(1, 4).logsumexp(1))
    assert torch.equal(everybodys.target_N, own.target_N)
    assert torch.equal(ours.forward(), ours._shard.losses(everybodys, batch.targets_N))
    ours.step()
    once_VD = ours.main_grad_VD.clone()
    state = ours.score()
    ours.weight_grad(state, ours.combined(state.statistics))
    torch.testing.assert_close(ours.main_grad_VD, 2 * once_VD)  # T alone has added the same
    assert once_VD.abs().sum() > 0


def test_the_floor_is_three_products(monkeypatch):
    monkeypatch.setattr(floor, "torch", CpuTorch())
    batch = random_batch(Shape(SMALL, 1, 32), CPU)
    bare = Floor(batch)
    bare._z_NV.fill_(torch.nan)
    bare._main_grad_VD.fill_(1.0)
    product_ND = bare.step()
    z_NV = (batch.x_ND.double() @ batch.w_VD.double().T).bfloat16().double()
    assert product_ND.dtype == bare._main_grad_VD.dtype == torch.float32
    torch.testing.assert_close(product_ND.double(), z_NV @ batch.w_VD.double(), rtol=2e-2, atol=5e-2)
    torch.testing.assert_close(bare._main_grad_VD.double(), 1 + z_NV.T @ batch.x_ND.double(), rtol=2e-2, atol=5e-1)


def test_figures_beside_the_floor(on_cpu):
    figures = {figure.name: figure for figure in beside.floor("v_128k")}
    assert list(figures) == [
        *(f"{what}, small, p=1" for what in ("S+T", "T", "forward only", "extra memory, S+T")),
        *(f"{what}, small, p=8" for what in ("S+T", "T", "forward only", "extra memory, S+T")),
    ]
    both, weight, forward, memory = list(figures.values())[:4]
    flops = 2 * 32 * 48 * 1366
    # S+T took 1 ms, its floor 2; T 3 and 4; forward only 5 and 6
    assert (both.ours, both.peer) == pytest.approx((3 * flops / 1e9, 3 * flops / 2e9))
    assert (weight.ours, weight.peer) == pytest.approx((flops / 3e9, flops / 4e9))
    assert forward.ratio == pytest.approx(6 / 5)
    assert (both.bar, weight.bar, forward.bar) == (0.92, 0.98, 0.92)
    assert both.met
    assert both.more_is_better
    assert (memory.ours, memory.unit, memory.bar) == (3.0, "MiB", None)


def test_figures_beside_a_peer(on_cpu):
    found = beside.peer("torch")
    assert [figure.name for figure in found] == [
        f"{what} beside torch, {case}, p=1"
        for case in ("small", "capped")
        for what in ("S+T", "extra memory, S+T", "error of the loss", "error of dX", "error of dW")
    ]
    speed, memory, loss, input_grad, weight_grad = found[:5]
    assert speed.ratio == pytest.approx(1 / 2)  # ours took 2 ms, the peer 1
    assert memory.ratio == 1.0
    assert loss.bar == 1e-5
    assert loss.ours < 1e-3
    for figure in (input_grad, weight_grad):
        assert figure.bar == min(3e-3, 2 * figure.peer + 1e-4)
        assert 0 < figure.ours < 8e-3
        assert 0 < figure.peer < 8e-3


def test_a_fast_wrong_peer_shows(on_cpu, monkeypatch):
    def side(batch):
        step = peers.PEERS["torch"].side(batch).step
        return peers.Side(lambda: exact.Result(step().loss, *(torch.zeros_like(t) for t in (batch.x_ND, batch.w_VD))))

    monkeypatch.setitem(peers.PEERS, "wrong", peers.Peer("wrong", side, speed_bar=4.0, memory_bar=1 / 3))
    speed, memory, loss, input_grad, weight_grad = beside.peer("wrong")  # it has no soft cap
    assert (speed.bar, speed.met, memory.bar, memory.met) == (4.0, False, 1 / 3, False)
    assert loss.peer < 1e-2
    assert (input_grad.peer, weight_grad.peer) == (1.0, 1.0)
    assert (loss.bar, input_grad.bar) == (None, None)


@pytest.fixture
def fake_liger(tmp_path, monkeypatch):
    """A wheel with what the benchmark calls of liger-kernel, and only that."""
    source = (
        "import torch\n"
        "calls = []\n"
        "class LigerFusedLinearCrossEntropyFunction:\n"
        "    @staticmethod\n"
        "    def apply(x, w, y, *options):\n"
        "        calls.append(options)\n"
        "        return (torch.nn.functional.cross_entropy((x @ w.T).float(), y), None)\n"
    )
    with zipfile.ZipFile(tmp_path / "liger_kernel-1-py3-none-any.whl", "w") as archive:
        archive.writestr("liger_kernel/__init__.py", "")
        archive.writestr("liger_kernel/ops/__init__.py", "")
        archive.writestr("liger_kernel/ops/fused_linear_cross_entropy.py", source)
    monkeypatch.setenv(wheels.VARIABLE, str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(wheels, "add_to_path", functools.cache(wheels.add_to_path.__wrapped__))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "liger_kernel"]:
        del sys.modules[name]


def test_a_peer_comes_from_a_wheel(fake_liger, on_cpu):
    speed, memory, bounded, bounded_memory, *_, weight_grad = beside.peer("liger")[:7]
    assert (speed.bar, speed.met, memory.bar) == (4.0, False, None)
    assert (bounded.name, bounded.bar) == ("bounded S+T beside liger-kernel, small, p=1", None)
    assert bounded.ratio == pytest.approx(1 / 3)  # it took 3 ms
    assert bounded_memory.name == "extra memory, bounded S+T beside liger-kernel, small, p=1"
    assert weight_grad.peer < 8e-3
    module = sys.modules["liger_kernel.ops.fused_linear_cross_entropy"]
    assert "pipert-peers-" in module.__file__
    assert {options[-1] for options in module.calls} == {1}
    assert {options[6] for options in module.calls} == {None, 5.0}


def test_a_tuned_peer_takes_its_fastest_chunk(fake_liger, on_cpu, monkeypatch):
    tried = []

    def third_is_fastest(works, num_rounds):
        tried.extend(works)
        return {name: [abs(place - 2.0)] for place, name in enumerate(works)}

    batch = random_batch(Shape(SMALL, 1, 32), CPU)
    monkeypatch.setattr(rounds, "in_turns", third_is_fastest)
    side = peers.PEERS["liger_tuned"].side(batch)
    assert tried == ["1", "2", "4", "8", "16", "29"]  # 29 chunks of 48 columns are all of the 1366
    assert side.setting == "Triton, chunk_mem_const=4"


@pytest.mark.parametrize(
    ("part", "package"),
    [
        ("liger", "liger-kernel==0.8.5"),
        ("cut_cross_entropy", "cut-cross-entropy==25.1.1"),
        ("megatron_core", "megatron-core==0.16.1"),
        ("quack", "quack-kernels"),
    ],
)
def test_a_peer_that_is_not_there_is_named(part, package, monkeypatch):
    def nothing_is_there(name):
        raise ImportError(f"no module named {name}")

    monkeypatch.setattr(peers.importlib, "import_module", nothing_is_there)
    with pytest.raises(Unavailable, match=f"not installed .*pip install {package}, or put its wheel into the folder"):
        peers.PEERS[part].side(random_batch(Shape(SMALL, 1, 8), CPU))


def test_an_older_torch_has_no_fused_layer(monkeypatch):
    monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    with pytest.raises(Unavailable, match=r"it came with 2\.13"):
        peers.PEERS["torch_linear_cross_entropy"].side(random_batch(Shape(SMALL, 1, 8), CPU))


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch 2.13 brought it")
def test_the_fused_layer_of_torch_is_called(on_cpu):
    *_, input_grad, weight_grad = beside.peer("torch_linear_cross_entropy")
    assert 0 < input_grad.peer < 2e-2
    assert 0 < weight_grad.peer < 2e-2


def test_calls_of_the_other_peers(monkeypatch):
    """What cut-cross-entropy and quack are called with; both need a GPU."""
    calls = []

    def layer(x, w, targets, **options):
        calls.append(options)
        return F.cross_entropy((x @ w.T).float(), targets)

    monkeypatch.setitem(sys.modules, "cut_cross_entropy", types.SimpleNamespace(linear_cross_entropy=layer))
    monkeypatch.setitem(sys.modules, "quack", types.ModuleType("quack"))
    quack = types.SimpleNamespace(chunked_linear_cross_entropy=layer)
    monkeypatch.setitem(sys.modules, "quack.linear_cross_entropy", quack)
    batch = random_batch(Shape(CAPPED, 1, 8), CPU)
    for part in ("cut_cross_entropy", "cut_cross_entropy_filtered", "quack"):
        result = peers.PEERS[part].side(batch).step()
        assert (result.input_grad_ND.shape, result.weight_grad_VD.dtype) == (batch.x_ND.shape, torch.bfloat16)
    assert calls == [{"softcap": 5.0, "filter_eps": None}, {"softcap": 5.0, "filter_eps": "high"}, {}]


def test_a_folder_of_wheels_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv(wheels.VARIABLE, "/no/such/folder")
    with pytest.raises(ConfigError, match="PIPERT_PEERS is to name a folder of wheels; '/no/such/folder' is none"):
        wheels.add_to_path.__wrapped__()


def run(monkeypatch, *arguments):
    monkeypatch.setattr("pipert.bench.gpu.device", lambda: None)
    monkeypatch.setattr("pipert.bench.machine.label", lambda found, on_gpu: "gpu" if on_gpu else "cpu")
    return CliRunner().invoke(app, ["bench", "vocab", *arguments])


def test_parts_are_chosen_and_come_out_as_json(on_cpu, monkeypatch, tmp_path):
    for name in ("liger_kernel", "cut_cross_entropy", "megatron", "quack"):
        monkeypatch.setitem(sys.modules, name, None)
    chosen = ["beside_liger", "beside_torch", "v_128k"]
    done = run(monkeypatch, *(f"--part={part}" for part in chosen), "--json", "-o", str(tmp_path))
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "vocab_gpu.json").read_text())
    assert json.loads(done.stdout) == result
    assert result["area"] == "vocab"
    assert len(result["figures"]) == 8 + 10
    assert list(result["unavailable"]) == ["beside_liger"]
    assert {"name", "unit", "ours", "peer", "ratio", "bar", "met", "setting"} <= set(result["figures"][0])
    names = [figure["name"] for figure in result["figures"]]
    assert len(set(names)) == len(names)


def test_a_part_that_is_not_there_is_refused(monkeypatch):
    done = run(monkeypatch, "--part=walk")
    assert isinstance(done.exception, ConfigError)
    assert "no part 'walk'; there is: v_128k, beside_torch" in str(done.exception)


def test_an_interrupt_leaves_the_figures_before_it(monkeypatch, tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    parts = {"a": lambda: [], "b": interrupted, "c": lambda: pytest.fail("it was begun")}
    monkeypatch.setattr(vocab, "PARTS", parts)
    done = run(monkeypatch, "-o", str(tmp_path / "figures.json"))
    assert done.exit_code == 1
    result = json.loads((tmp_path / "figures.json").read_text())
    assert result["failed"] == {"b": "interrupted", "c": "not begun: interrupted"}
