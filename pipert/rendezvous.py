"""What ranks of one machine agree on before they share memory, over a process group they already have.

The group (torch.distributed, any backend that moves host memory) is used here and at the end of a step, never within.
Nothing is pickled: values travel as JSON.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from pipert.errors import ConfigError, TransportError

if TYPE_CHECKING:
    from pipert.plan import Plan

Group = dist.ProcessGroup


def meet(group: Group, plan: Plan, options: Mapping[str, Any], fault: Exception | None = None) -> str:
    """Check that the group's ranks can run ``plan`` together, and agree on a session id that nobody else has.

    Collective.

    Args:
        group: the ranks.
        plan: must be the same on every rank.
        options: JSON values by name that must be the same on every rank.
        fault: what this rank found wrong on its own side: it is raised here, and the other ranks raise too instead of
            waiting for this one.

    Returns:
        The session id.

    Raises:
        ConfigError: the group has another number of ranks than the plan, or moves no host memory; the ranks have
            different plans or options; or another rank brought a ``fault``.
        TransportError: the ranks are not all on one machine.
    """
    _check_host_memory(group)
    about = {
        "machine": _machine(),
        "host": socket.gethostname(),
        "plan": plan.native.fingerprint,
        "options": options,
        "fault": _text(fault),
        "session": secrets.token_hex(16),
    }
    peers = gather(group, about)
    if len(peers) != plan.num_ranks:
        raise ConfigError(f"the plan is for {plan.num_ranks} ranks, the process group has {len(peers)}")
    if fault is not None:
        raise fault
    _check_peers(peers)
    return str(peers[0]["session"])


def agree(group: Group, fault: Exception | None) -> None:
    """Go on only if every rank of ``group`` can. Collective.

    Args:
        group: the ranks; it moves host memory.
        fault: what this rank found wrong on its own side.

    Raises:
        ConfigError: another rank cannot start; and ``fault`` itself on the rank that brought it.
    """
    faults = gather(group, _text(fault))
    if fault is not None:
        raise fault
    _check_faults(faults)


def host_group(group: Group) -> Group:
    """Return a group of the same ranks that moves host memory: ``group`` itself where it does. Collective over it."""
    try:
        group._get_backend(torch.device("cpu"))
    except RuntimeError:
        made: Group = dist.new_group(
            dist.get_process_group_ranks(group), backend="gloo", use_local_synchronization=True
        )
        return made
    return group


def gather(group: Group, value: Any) -> list[Any]:
    """Collect one JSON value from each rank, on every rank, in rank order. Collective."""
    payload = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    num_ranks = dist.get_world_size(group)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(num_ranks)]
    dist.all_gather(sizes, torch.tensor([payload.numel()]), group=group)
    lengths = [int(size) for size in sizes]
    padded = torch.zeros(max(lengths), dtype=torch.uint8)
    padded[: payload.numel()] = payload
    parts = [torch.empty_like(padded) for _ in range(num_ranks)]
    dist.all_gather(parts, padded, group=group)
    return [json.loads(bytes(part[:length].tolist())) for part, length in zip(parts, lengths, strict=True)]


def _check_host_memory(group: Group) -> None:
    try:
        group._get_backend(torch.device("cpu"))
    except RuntimeError as error:
        raise ConfigError(
            "the process group moves no tensors of host memory, over which the ranks meet; make it with "
            f"init_process_group('cpu:gloo,cuda:nccl') or 'gloo' ({error})"
        ) from None


def _text(fault: Exception | None) -> str | None:
    return None if fault is None else f"{type(fault).__name__}: {fault}"


def _check_faults(faults: list[str | None]) -> None:
    for peer, text in enumerate(faults):
        if text is not None:
            raise ConfigError(f"rank {peer} cannot start: {text}", rank=peer)


def _check_peers(peers: list[dict[str, Any]]) -> None:
    _check_faults([about["fault"] for about in peers])
    for peer, about in enumerate(peers):
        if about["plan"] != peers[0]["plan"]:
            raise ConfigError(f"rank {peer} has another plan than rank 0; give all ranks the same plan", rank=peer)
        for name, value in about["options"].items():
            first = peers[0]["options"][name]
            if value != first:
                raise ConfigError(
                    f"rank {peer} has {name}={value}, rank 0 {name}={first}; all ranks need the same", rank=peer
                )
        if about["machine"] != peers[0]["machine"]:
            raise TransportError(
                f"rank {peer} is on {about['host']}, rank 0 on {peers[0]['host']}, in another machine or network "
                "namespace; this transport joins the ranks of one machine",
                rank=peer,
            )


def _machine() -> str:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot_id}/{os.stat('/proc/self/ns/net').st_ino}"
