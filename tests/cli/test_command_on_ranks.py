"""What ranks say at the end: one what all know, each what it alone knows."""

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from gloo import run_gloo
from omegaconf import DictConfig

from vlm.cli.command import command
from vlm.distributed import ControlGroup, split_ranks
from vlm.errors import OF_ONE_RANK, ConfigError, DataError, StoppedError


def meet(case: str) -> None:
    """The error of a case, on the ranks that meet it."""

    def full() -> None:
        raise ConfigError("no such key")

    match case:
        case "one rank" if dist.get_rank() == 1:
            raise DataError("no such file")
        case "one rank, of the system" if dist.get_rank() == 1:
            raise FileNotFoundError("no such file")
        case "the first, for all":
            ControlGroup().first_rank_does(full)
        case "all alike":
            split_ranks(3, key="objective.group_size")
        case "a signal":
            raise StoppedError("later")


def ended(case: str) -> tuple[Any, str]:
    """Exit code, or message in its place, and what this rank said."""
    os.environ["RANK"] = str(dist.get_rank())
    sys.argv = ["vlm evaluate", "run=x"]

    @command("evaluate")
    def fails(config: DictConfig) -> None:
        meet(case)

    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            fails()
        except SystemExit as end:
            return end.code, said.getvalue()
    return 0, said.getvalue()


def all_ended(cases: list[str]) -> list[tuple[Any, str]]:
    return [ended(case) for case in cases]


def test_one_speaks_for_all_and_each_for_itself(tmp_path: Path) -> None:
    cases = ["one rank", "one rank, of the system", "the first, for all", "all alike", "a signal"]
    first, second = (
        dict(zip(cases, found, strict=True)) for found in run_gloo(all_ended, 2, tmp_path, cases)
    )
    assert first["one rank"] == (0, "")
    assert second["one rank"] == (OF_ONE_RANK, "rank 1: DataError: no such file\n")
    assert second["one rank, of the system"] == (OF_ONE_RANK, "rank 1: FileNotFoundError: no such file\n")
    assert first["the first, for all"] == (
        "ConfigError: no such key",
        "",
    )  # is printed at the end, with code 1
    assert second["the first, for all"] == (1, "")
    assert str(first["all alike"][0]).startswith("ConfigError: objective.group_size=3")
    assert second["all alike"] == (1, "")
    assert first["a signal"] == (75, "StoppedError: later\n")
    assert second["a signal"] == (75, "")


def test_a_code_of_one_rank_is_above_those_of_signals() -> None:
    assert 128 + 64 < OF_ONE_RANK < 256
