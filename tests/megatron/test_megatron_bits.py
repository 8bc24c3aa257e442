"""Megatron's own schedules against pipert's, every loss and gradient of five steps, to the bit.

`make megatron` runs the whole matrix (PIPERT_MEGATRON_ALL), `make test` every ninth case.
"""

import os

import pytest
from script_runs import PIPERT, differences, needs_megatron, run

pytestmark = needs_megatron

PP4 = "--pipeline-model-parallel-size 4"
PP2 = "--pipeline-model-parallel-size 2"
PP2V2 = f"{PP2} --virtual-pipeline-model-parallel-size 2"
PP2V4 = f"{PP2} --virtual-pipeline-model-parallel-size 4"
MOE = "--num-experts 2"
OVERLAP = "--overlap-grad-reduce"
DISTRIBUTED = "--use-distributed-optimizer"
GATHER = f"{DISTRIBUTED} --overlap-param-gather"
UNTIED = "--untie-embeddings-and-output-weights"
RECOMPUTE = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
DROPOUT = "--attention-dropout 0.1 --hidden-dropout 0.1"
EVAL = "--eval-interval 2 --eval-iters 2"

CASES = [
    ("1f1b", PP4),
    ("1f1b", f"{PP4} {UNTIED}"),
    ("1f1b", f"{PP4} {MOE}"),
    ("1f1b", f"{PP4} {MOE} {UNTIED}"),
    ("1f1b", f"{PP4} --variable-seq-lengths"),
    ("1f1b", f"{PP4} {MOE} --variable-seq-lengths"),
    ("1f1b", f"{PP4} {EVAL}"),
    ("1f1b", f"{PP4} {RECOMPUTE}"),
    ("1f1b", f"{PP4} {DROPOUT}"),
    ("1f1b", f"{PP4} {DROPOUT} {RECOMPUTE}"),
    ("1f1b", f"{PP4} --calculate-per-token-loss"),
    ("1f1b", f"{PP2}"),
    ("1f1b", f"{PP2} {OVERLAP}"),
    ("1f1b", f"{PP2} {OVERLAP} {DISTRIBUTED}"),
    ("1f1b", f"{PP2} --tensor-model-parallel-size 2"),
    ("1f1b", f"{PP2} --tensor-model-parallel-size 2 --sequence-parallel"),
    ("1f1b", f"{PP2} {MOE} --expert-model-parallel-size 2"),
    ("1f1b", f"{PP2} {OVERLAP} --variable-seq-lengths --calculate-per-token-loss {EVAL}"),
    ("interleaved", PP2V2),
    ("interleaved", f"{PP2V2} {UNTIED}"),
    ("interleaved", f"{PP2V2} {MOE}"),
    ("interleaved", f"{PP2V2} {OVERLAP}"),
    ("interleaved", f"{PP2V2} {OVERLAP} {DISTRIBUTED}"),
    ("interleaved", f"{PP2V2} --variable-seq-lengths"),
    ("interleaved", f"{PP2V2} {EVAL}"),
    ("interleaved", f"{PP2V2} {DROPOUT}"),
    ("interleaved", f"{PP2V2} {RECOMPUTE}"),
    ("interleaved", f"{PP2V4} --microbatch-group-size-per-virtual-pipeline-stage 4"),
    ("interleaved", f"{PP4} --virtual-pipeline-model-parallel-size 2"),
    ("interleaved", f"{PP4} --virtual-pipeline-model-parallel-size 2 {MOE} {UNTIED}"),
    ("1f1b", f"{PP2} {OVERLAP} {GATHER}"),
    ("interleaved", f"{PP2V2} {OVERLAP} {GATHER}"),
    ("interleaved-zb", f"{PP2V2} {OVERLAP} {GATHER}"),
    ("zb-1p", PP4),
    ("zb-1p", f"{PP4} {UNTIED}"),
    ("zb-1p", f"{PP4} {MOE}"),
    ("zb-1p", f"{PP4} --variable-seq-lengths"),
    ("zb-1p", f"{PP4} {EVAL}"),
    ("zb-1p", f"{PP4} {DROPOUT} {RECOMPUTE}"),
    ("zb-1p", f"{PP4} --calculate-per-token-loss"),
    ("zb-1p", f"{PP2} {OVERLAP}"),
    ("zb-1p", f"{PP2} {OVERLAP} {DISTRIBUTED}"),
    ("zb-1p", f"{PP2} --tensor-model-parallel-size 2 --sequence-parallel"),
    ("zb-1p", f"{PP2} {MOE} --expert-model-parallel-size 2"),
    ("zb-h1", PP4),
    ("zb-h1", f"{PP4} {MOE} {UNTIED}"),
    ("zb-h2", PP4),
    ("zb-h2", f"{PP2} {OVERLAP}"),
    ("zb-2p", PP4),
    ("interleaved-zb", PP2V2),
    ("interleaved-zb", f"{PP2V2} {MOE} {UNTIED}"),
    ("interleaved-zb", f"{PP2V2} {OVERLAP} {DISTRIBUTED}"),
    ("breadth-first", PP2V2),
    ("breadth-first", f"{PP2V2} {OVERLAP} {EVAL}"),
]


CHOSEN = CASES if "PIPERT_MEGATRON_ALL" in os.environ else CASES[::9]


@pytest.mark.parametrize(("schedule", "arguments"), [pytest.param(*case, id=" ".join(case)) for case in CHOSEN])
def test_bits(schedule, arguments):
    reference = run(*arguments.split())
    result = run(*arguments.split(), prefix=(*PIPERT, schedule))
    assert not differences(reference, result)
    if "zb" in schedule:
        assert ("its full backward runs at I" in result.output) == (RECOMPUTE in arguments)
