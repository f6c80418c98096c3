"""What `train plan=true` says, beside a model that is there."""

import re
from pathlib import Path

import pytest
import torch
from toy_run import composed, tiny_overrides

from vlm.cli.train import run_from
from vlm.errors import VlmError
from vlm.models import build_model
from vlm.training import plan
from vlm.training.clock import StepClock
from vlm.training.plan import SPREAD
from vlm.training.work import Work


def numbers(text: str, block: str) -> dict[str, float]:
    """The lines of a block of the plan."""
    lines = text.split(f"\n{block}")[1].split("\n\n")[0].splitlines()[1:]
    found = (re.fullmatch(r"  (.+?) +([\d.,]+)", line) for line in lines)
    return {match[1]: float(match[2].replace(",", "")) for match in found if match}


def test_a_plan_counts_what_is_there_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = run_from(composed([*tiny_overrides(tmp_path), "objective.implementation=dense"]))
    text = plan(run)
    spec = run.model.with_tokenizer(vocab_size=run.tokenizer.vocab_size, eot_id=1)
    parameters = sum(p.numel() for p in build_model(spec).parameters()) - 1
    memory = numbers(text, "memory of a rank")
    assert memory["weights"] == pytest.approx(4 * parameters / 2**20, abs=1e-3)
    assert memory["optimizer"] == pytest.approx(2 * memory["weights"], abs=2e-3)
    assert memory["logits (dense)"] == pytest.approx(20 * run.data.global_batch_size**2 / 2**20, abs=1e-3)
    assert memory["together"] == pytest.approx(sum(v for k, v in memory.items() if k != "together"), abs=0.01)
    assert numbers(text, "received")["together"] == 0
    assert list(tmp_path.iterdir()) == []


def test_ranks_share_the_batch_and_exchange_gradients_and_vectors(tmp_path: Path) -> None:
    one, four = (
        plan(run_from(composed([*tiny_overrides(tmp_path), f"trainer.devices={devices}"])))
        for devices in (1, 4)
    )
    activations = [numbers(text, "memory of a rank")["activations"] for text in (one, four)]
    assert activations[0] == pytest.approx(4 * activations[1], rel=0.01)
    weights = numbers(four, "memory of a rank")["weights"]
    assert numbers(four, "received")["gradients and weights"] == pytest.approx(2 * 3 / 4 * weights, rel=0.01)
    assert numbers(four, "received")["loss"] > 0
    assert SPREAD["ddp"] == frozenset()


def test_a_batch_that_ranks_cannot_share_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VlmError, match=r"streams_per_group|global_batch_size"):
        plan(run_from(composed([*tiny_overrides(tmp_path), "trainer.devices=7"])))


def test_a_clock_gives_time_to_what_was_done() -> None:
    clock = StepClock()
    for _ in range(2):
        clock.start(torch.device("cpu"))
        clock.mark("a")
        torch.randn(512, 512) @ torch.randn(512, 512)
        clock.mark("b")
    found = clock.read()
    assert found["b"] > found["a"] > 0
    assert clock.read() == {}


def test_work_grows_with_rows_and_the_length_of_texts(tmp_path: Path) -> None:
    run = run_from(composed(tiny_overrides(tmp_path)))
    spec = run.model.with_tokenizer(vocab_size=300, eot_id=1)
    done = []
    for rows, length in ((4, 8), (8, 8), (4, 16)):
        work = Work.of(spec, torch.device("cpu"))
        work.add({"text": torch.zeros(rows, length, dtype=torch.int64)})
        done.append(work.read()["tflops"])
        assert work.read() == {}
    assert done[1] == pytest.approx(2 * done[0])
    assert done[2] > done[0]
