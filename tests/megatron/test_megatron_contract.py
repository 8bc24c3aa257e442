"""Every item of Megatron's contract, by Megatron's own function and by pipert's; and what is refused, by name."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from script_runs import needs_megatron

pytestmark = needs_megatron
HERE = Path(__file__).parent
ROOT = HERE.parents[1]

MESSAGES = {
    "adjust_tensor_shapes_fn": "adjust_tensor_shapes_fn is not supported",
    "overlap_moe_expert_parallel_comm": "overlap_moe_expert_parallel_comm is not supported",
    "fine_grained_activation_offloading": "fine_grained_activation_offloading is not supported",
    "cpu_offloading": "cpu_offloading is not supported",
    "cuda_graph_impl": "cuda_graph_impl is not supported",
    "hybrid_context_parallel": "hybrid_context_parallel is not supported",
    "encoder_and_decoder models": "encoder_and_decoder models is not supported",
    "another communicator": "p2p_communicator is a OtherCommunicator",
    "one of the groups": "p2p_communicator and pg_collection: give both or neither",
    "a group that is missing": "pg_collection has no tp, cp",
    "a chunk without the hooks": "rank 1 .*model: chunk 0, a Linear, has no set_input_tensor",
    "too few data iterators": "data_iterator: 2 model chunks need a list of as many, not 1",
    "one value of the loss function": "1F0.*the loss function must return .*it returned 1 value",
    "no loss to begin at": r"1B0.*the loss has shape \(4, 2, 8\)",
    "no tensor to begin at": "1F0.*the last stage's output is no tensor",
    "a forward_step_func that raises": "1F2.*ValueError: a bad batch",
    "an unknown schedule": "'zb-7' is neither a file nor a schedule",
    "a plan for other sizes": "is for 3 ranks; pipeline_model_parallel_size is 2",
    "a schedule with replicas": "chimera holds stages on several ranks",
    "a group size": "in groups of 3 .* leaves a last group of 1",
    "a group size above the microbatches": "microbatch_group_size_per_vp_stage is 5; it must be from 2",
}
"""What each refusal says on rank 0; on rank 1 without its prefix."""

ELSEWHERE = {
    "gradient_accumulation_fusion": "test_megatron_split.py",
    "delay_wgrad_compute": "test_megatron_split.py",
    "share_embeddings_and_output_weights": "test_megatron_bits.py",
    "pipeline_model_parallel_layout": "test_megatron_placement.py",
    "sequence_parallel, context parallelism, tensor parallelism": "test_megatron_bits.py",
    "stage outputs": "contract_cases.py: PLAIN",
    "loss function": "contract_cases.py: loss function with three values",
    "set_is_first_microbatch, set_current_microbatch": "toy.py: notes, in every case",
}
"""Items whose tests have another name, and where they are."""

SPLIT = "with --pipert-vocab-parallel"
"""Items with this in their names are tested in test_megatron_vocab.py."""


@pytest.fixture(scope="module")
def results():
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, str(HERE / "rank_contract.py")],
        capture_output=True,
        text=True,
        timeout=110,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = {}
    for line in done.stdout.splitlines():
        found |= json.loads(line) if line.startswith("{") else {}
    return found


def environment():
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def names(dictionary):
    """Read the keys of a dictionary in contract_cases.py, which cannot be imported without a process group's shim."""
    source = (HERE / "contract_cases.py").read_text()
    body = source.split(f"\n{dictionary} = {{")[1].split("\n}")[0]
    return re.findall(r'^    "([^"]+)": ', body, flags=re.MULTILINE)


@pytest.mark.parametrize("name", names("CASES"))
def test_it_is_as_with_megatrons_own_function(results, name):
    assert results[name] == [None, None]


@pytest.mark.parametrize("name", names("PLAIN"))
def test_it_is_as_a_plain_loop_has_it(results, name):
    assert results[name] == [None, None]


@pytest.mark.parametrize("name", names("REFUSED"))
def test_it_is_refused_by_name_on_every_rank(results, name):
    first, second = results[name]
    assert re.search(MESSAGES[name], first), first
    assert re.search(MESSAGES[name].removeprefix("rank 1 .*"), second), second


def test_every_item_has_a_test():
    from pipert.megatron.contract import CONTRACT

    tested = {*names("CASES"), *names("REFUSED")}
    for item in CONTRACT:
        if item.verdict != "not applicable" and item.name not in ELSEWHERE and SPLIT not in item.name:
            assert any(name.startswith(item.name.split(",")[0]) for name in tested), item.name
    assert set(ELSEWHERE) <= {item.name for item in CONTRACT}


def test_the_function_has_megatrons_signature():
    code = (
        "import inspect; from megatron.core.pipeline_parallel import schedules;"
        "from pipert.megatron.forward_backward import make_forward_backward;"
        "from pipert.megatron.options import Options;"
        "ours = inspect.signature(make_forward_backward(Options())[0]).parameters.values();"
        "own = inspect.signature(schedules.forward_backward_pipelining_with_interleaving).parameters.values();"
        "assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in own]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
