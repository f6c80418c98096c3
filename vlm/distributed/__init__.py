"""Ranks and collectives; everything here is a no-op in one process."""

from vlm.distributed.collectives import (
    gather_objects,
    gather_rows,
    logsumexp_over_ranks,
    max_over_ranks,
    mean_over_ranks,
    own_part,
    sum_over_ranks,
    sum_parts,
    take_from_first,
)
from vlm.distributed.control import ControlGroup
from vlm.distributed.groups import check_group_size, split_ranks
from vlm.distributed.launch import is_main_process, process_group
from vlm.distributed.lost import naming_lost_ranks
from vlm.distributed.topology import Group, Topology

__all__ = [
    "ControlGroup",
    "Group",
    "Topology",
    "check_group_size",
    "gather_objects",
    "gather_rows",
    "is_main_process",
    "logsumexp_over_ranks",
    "max_over_ranks",
    "mean_over_ranks",
    "naming_lost_ranks",
    "own_part",
    "process_group",
    "split_ranks",
    "sum_over_ranks",
    "sum_parts",
    "take_from_first",
]
