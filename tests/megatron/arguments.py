"""The script's options, under the names that Megatron's scripts have."""

import argparse
from pathlib import Path


def parse(argv=None):
    parser = argparse.ArgumentParser(description="Train a small GPT with megatron-core.")
    add = parser.add_argument
    add("--tensor-model-parallel-size", type=int, default=1)
    add("--pipeline-model-parallel-size", type=int, default=1)
    add("--virtual-pipeline-model-parallel-size", type=int)
    add("--expert-model-parallel-size", type=int, default=1)
    add("--sequence-parallel", action="store_true")
    add("--pipeline-model-parallel-layout")
    add("--microbatch-group-size-per-virtual-pipeline-stage", type=int)
    add("--num-layers", type=int, default=8)
    add("--hidden-size", type=int, default=32)
    add("--num-attention-heads", type=int, default=4)
    add("--seq-length", type=int, default=32)
    add("--vocab-size", type=int, default=256)
    add("--num-experts", type=int)
    add("--untie-embeddings-and-output-weights", action="store_true")
    add("--attention-dropout", type=float, default=0.0)
    add("--hidden-dropout", type=float, default=0.0)
    add("--recompute-granularity", choices=["full", "selective"])
    add("--recompute-method", choices=["uniform", "block"])
    add("--recompute-num-layers", type=int)
    add("--micro-batch-size", type=int, default=1)
    add("--global-batch-size", type=int, default=8)
    add("--train-iters", type=int, default=5)
    add("--eval-interval", type=int, default=0, help="0: never")
    add("--eval-iters", type=int, default=1)
    add("--lr", type=float, default=1e-3)
    add("--clip-grad", type=float, default=1.0)
    add("--seed", type=int, default=1234)
    add("--variable-seq-lengths", action="store_true", help="microbatches of different lengths")
    add("--calculate-per-token-loss", action="store_true")
    add("--use-distributed-optimizer", action="store_true")
    add("--overlap-grad-reduce", action="store_true")
    add("--overlap-param-gather", action="store_true")
    add("--data-path", type=Path, help="prefix of an indexed dataset; by default one is made of text on this machine")
    add("--dump", type=Path, help="a folder for every step's losses and gradients")
    return parser.parse_args(argv)
