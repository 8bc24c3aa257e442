"""One rank of a toy pipeline: each case is run by Megatron's own function and by pipert's, and compared.

Started by torchrun from test_megatron_contract.py. The first rank prints a JSON line: case → what differs, or null.
"""

import json
import os
import sys
import traceback

import cpu_shim
import torch
import torch.distributed as dist
from contract_cases import CASES, PLAIN, REFUSED
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import schedules
from toy import Chunk, Toy

import pipert.megatron
from pipert.errors import PipertError
from pipert.megatron.install import finish

TIMERS = ("forward-backward", "forward-compute", "backward-compute")


def same(a, b):
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def initialise(case):
    parallel_state.destroy_model_parallel()
    virtual = case.num_chunks if case.num_chunks > 1 else None
    parallel_state.initialize_model_parallel(1, dist.get_world_size(), virtual_pipeline_model_parallel_size=virtual)


def compare(case):
    """Return what differs between the two runs on this rank, or None."""
    initialise(case)
    pipert.megatron.uninstall()
    own = Toy(case, is_ours=False).run(schedules.get_forward_backward_func())
    pipert.megatron.install(case.schedule)
    ours = Toy(case, is_ours=True).run(schedules.get_forward_backward_func())
    finish()
    return differences(observed(case, *own), observed(case, *ours)) or wrong_syncs(ours[-1])


def observed(case, returned, gradients, notes, events):
    """Return what must be the same: with another schedule than Megatron's, not the order of events."""
    found = {"returned": returned, "gradients": gradients}
    if case.schedule is None:
        found |= {"notes": notes, "events": [event for event in events if is_common(event)]}
    return found


def is_common(event):
    """Leave out what is allowed to differ: when gradients are reduced, and timers of Megatron's own transfers."""
    kind, name, *_ = event
    return not kind.endswith(" sync") and not (kind in ("start", "stop") and name not in TIMERS)


def differences(own, ours):
    return "; ".join(f"{what}: {own[what]} and {ours[what]}" for what in own if not same(own[what], ours[what])) or None


def wrong_syncs(events):
    """Return what is wrong: gradients of a chunk are reduced once a step, after the last of them, and not held back."""
    for chunk in {event[1] for event in events if event[0] == "grad sync"}:
        of_chunk = [event for event in events if event[0] in ("gradient", "grad sync") and event[1] == chunk]
        steps = len([event for event in of_chunk if event[0] == "grad sync"])
        each = len(of_chunk) // steps
        if any(event[0] == "grad sync" for event in of_chunk if (of_chunk.index(event) + 1) % each):
            return f"gradients of chunk {chunk}: {of_chunk}"
        if any(event[-1] for event in of_chunk if event[0] == "grad sync"):
            return f"gradients of chunk {chunk} are held back while they are reduced"
    return None


def compare_plain(case):
    """Return what differs from a plain loop over all stages, for what Megatron itself does not carry."""
    initialise(case)
    pipert.megatron.install(case.schedule)
    toy = Toy(case, is_ours=True)
    returned, gradients, _, _ = toy.run(schedules.get_forward_backward_func())
    finish()
    size, rank = dist.get_world_size(), dist.get_rank()
    stages = [Chunk(toy.config, stage, case) for stage in range(size)]
    expected = []
    for number in case.num_microbatches:
        expected.append([])
        for x in toy.data[:number]:
            x = stages[0](x)
            for stage in stages[1:]:
                stage.set_input_tensor(list(x) if isinstance(x, tuple) else [x])
                x = stage(None)
            loss = toy.loss_of(x)
            expected[-1].append({"loss": loss.detach().clone()})
            (loss / number).backward()
    found = {"gradients": gradients, "returned": returned}
    plain = {
        "gradients": [p.grad for p in stages[rank].parameters()],
        "returned": expected if rank == size - 1 else [[]] * 2,
    }
    return differences(plain, found)


def refusal(case):
    """Return the message with which the case is refused."""
    initialise(case)
    try:
        pipert.megatron.install(case.schedule)
        Toy(case, is_ours=True).run(schedules.get_forward_backward_func())
    except PipertError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        pipert.megatron.uninstall()
    return "nothing was refused"


def main():
    cpu_shim.install()
    autocast = torch.autocast
    torch.autocast = lambda device_type, *args, **kwargs: autocast("cpu", *args, **kwargs)
    dist.init_process_group("gloo")
    for run, cases in ((compare, CASES), (compare_plain, PLAIN), (refusal, REFUSED)):
        for name, case in cases.items():
            show(name, run, case)
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)


def show(name, run, case):
    try:
        result = run(case)
    except Exception:
        print(f"{name}: {traceback.format_exc()}", file=sys.stderr, flush=True)
        os._exit(1)  # the other rank waits for this one
    results = [None] * dist.get_world_size()
    dist.all_gather_object(results, result)
    if dist.get_rank() == 0:
        print(json.dumps({name: results}), flush=True)


main()
