"""Ranks split into groups."""

import socket
from typing import Literal

import torch.distributed as dist

from vlm.distributed.collectives import gather_objects
from vlm.distributed.topology import Group
from vlm.errors import ConfigError


def split_ranks(size: int | Literal["node"] | None, *, key: str) -> Group:
    """This rank's group of `size` consecutive ranks; every rank must call it.

    Args:
        size: ranks in a group; "node" for those of one machine, None for all.
        key: of the configuration, for messages.

    Raises:
        ConfigError: the groups cannot be of equal size.
    """
    everyone = Group.everyone()
    if size is None:
        return everyone
    if size == "node":
        size = _ranks_per_node(key)
    check_group_size(size, everyone.size, key=key)
    if size == everyone.size:
        return everyone
    # Every rank makes every group, in the same order, else torch.distributed waits for ever.
    handles = [dist.new_group(range(first, first + size)) for first in range(0, everyone.size, size)]
    return Group(rank=everyone.rank % size, size=size, handle=handles[everyone.rank // size])


def check_group_size(size: int, world_size: int, *, key: str) -> None:
    """Raise a ConfigError unless so many ranks fall into groups of `size`."""
    if size < 1 or world_size % size:
        fitting = ", ".join(str(n) for n in range(1, world_size + 1) if world_size % n == 0)
        raise ConfigError(
            f"{key}={size} has to divide the number of ranks, {world_size}: take {fitting}, or null for all"
        ).on_all_ranks()


def _ranks_per_node(key: str) -> int:
    """Ranks on each machine, which must be consecutive and as many on all."""
    hosts = gather_objects(socket.gethostname())
    size = hosts.count(hosts[0])
    if hosts != [host for host in dict.fromkeys(hosts) for _ in range(size)]:
        counts = ", ".join(f"{hosts.count(host)} on {host}" for host in dict.fromkeys(hosts))
        raise ConfigError(
            f"{key}=node needs as many consecutive ranks on every node; there are {counts}. Give a number"
        ).on_all_ranks()
    return size
