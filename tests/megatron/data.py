"""An indexed dataset made from text on this machine, and the batches that are cut from it."""

import os
import sysconfig
import tempfile
from pathlib import Path

import numpy
import torch
import torch.distributed as dist
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

_NAMES = ("argparse.py", "ast.py", "datetime.py", "decimal.py", "inspect.py", "typing.py")


def open_dataset(prefix):
    """Return the dataset at ``prefix``; where none is given, the first process of the machine makes one. Collective."""
    if prefix is None:
        prefix = Path(tempfile.gettempdir()) / f"pipert-megatron-{os.getuid()}" / "text"
        if int(os.environ.get("LOCAL_RANK", "0")) == 0 and not Path(f"{prefix}.idx").exists():
            _make(prefix)
    dist.barrier()
    return IndexedDataset(str(prefix))


class Batches:
    """Batches of tokens, the same for the same (seed, number) on every rank of a model's replica.

    Args:
        dataset: documents of bytes.
        args: the script's options.
        replica: which data-parallel replica takes them.
        split: "train" or "valid".
    """

    def __init__(self, dataset, args, replica, split):
        self._dataset, self._args, self._replica, self._split = dataset, args, replica, split
        self._next = 0

    def __iter__(self):
        return self

    def __next__(self):
        args, number = self._args, self._next
        self._next += 1
        generator = numpy.random.default_rng((args.seed, self._split == "valid", self._replica, number))
        length = args.seq_length
        if args.variable_seq_lengths:
            length -= 8 * int(generator.integers(0, 3))
        rows = [self._cut(generator, length + 1) for _ in range(args.micro_batch_size)]
        return torch.from_numpy(numpy.stack(rows).astype(numpy.int64))

    def _cut(self, generator, length):
        document = int(generator.integers(0, len(self._dataset)))
        start = int(generator.integers(0, self._dataset.sequence_lengths[document] - length))
        return self._dataset.get(document, offset=start, length=length)


def _make(prefix):
    prefix.parent.mkdir(exist_ok=True)
    scratch = f"{prefix}.{os.getpid()}"
    builder = IndexedDatasetBuilder(f"{scratch}.bin", dtype=numpy.uint8)
    for name in _NAMES:
        text = (Path(sysconfig.get_path("stdlib")) / name).read_bytes()
        builder.add_document(torch.frombuffer(bytearray(text), dtype=torch.uint8), [len(text)])
    builder.finalize(f"{scratch}.idx")
    os.replace(f"{scratch}.bin", f"{prefix}.bin")
    os.replace(f"{scratch}.idx", f"{prefix}.idx")
