"""What `train plan=true` says, beside a model that is there."""

import re
from pathlib import Path

import pytest
import torch
from toy_run import composed, tiny_images, tiny_overrides

from vlm.cli.train import run_from
from vlm.errors import ConfigError, VlmError
from vlm.models import build_model
from vlm.training import plan
from vlm.training.clock import StepClock
from vlm.training.plan import SPREAD, _memory, _parameter_traffic
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


def test_class_centres_are_divided_among_ranks(tmp_path: Path) -> None:
    classes, dim, share = 1_000_000, 16, 0.1
    sizes = [f"objective.num_classes={classes}", f"objective.sample_rate={share}"]
    for devices in (1, 4):
        text = plan(run_from(composed([*tiny_images(tmp_path, *sizes), f"trainer.devices={devices}"])))
        centres = (12 + 2 * 4 * share) * classes * dim / devices / 2**20
        assert numbers(text, "memory of a rank")["class centres"] == pytest.approx(centres, rel=1e-4)
        products = 4 * 2 * classes * share * dim / 1e9  # of a sample, with the centres of all ranks
        assert numbers(text, "a sample")["loss"] == pytest.approx(products, abs=1e-3)


@pytest.mark.parametrize(
    ("strategy", "precision", "memory", "received", "received_in_two_parts"),
    [
        # An all-reduce counts twice, as a scatter and a gather.
        ("ddp", "32-true", (4, 4, 8), 4 + 4, 4 + 4),
        ("ddp", "bf16-mixed", (4, 4, 8), 4 + 4, 4 + 4),
        # Gathered for each forward and each backward; each of two parts goes forward twice.
        ("fsdp2", "32-true", (4 / 4, 4 / 4, 8 / 4), 2 * 4 + 4, 6 * 4 + 2 * 4),
        ("fsdp2", "bf16-mixed", (4 / 4, 4 / 4, 8 / 4), 2 * 2 + 4, 6 * 2 + 2 * 4),
        # All-reduced, and the weights gathered after the step.
        ("deepspeed_zero1", "32-true", (4, 4, 12 / 4), 8 + 4, 8 + 4),
        ("deepspeed_zero1", "bf16-mixed", (2, 2, 12 / 4), 4 + 2, 4 + 2),
        ("deepspeed_zero2", "32-true", (4, 4 / 4, 12 / 4), 8 + 4, 2 * 8 + 4),
        ("deepspeed_zero2", "bf16-mixed", (2, 2 / 4, 12 / 4), 4 + 2, 2 * 4 + 2),
        ("deepspeed_zero3", "32-true", (4 / 4, 4 / 4, 8 / 4), 2 * 4 + 4, 6 * 4 + 2 * 4),
        ("deepspeed_zero3", "bf16-mixed", (2 / 4, 2 / 4, 12 / 4), 2 * 2 + 2, 6 * 2 + 2 * 2),
    ],
)
def test_every_strategy_holds_and_receives_what_it_does_by_hand(
    tmp_path: Path,
    strategy: str,
    precision: str,
    memory: tuple[float, ...],
    received: int,
    received_in_two_parts: int,
) -> None:
    """Bytes a parameter: weights, gradients, optimizer; and of the 3 / 4 of it that other ranks send."""
    how = [f"trainer={strategy}", f"trainer.precision={precision}", "trainer.devices=4"]
    run = run_from(composed([*tiny_overrides(tmp_path), *how]))
    parts = ("weights", "gradients", "optimizer")
    assert _memory(run, 800, 4) == {n: 800 * size for n, size in zip(parts, memory, strict=True)}
    assert _parameter_traffic(run.trainer, 800, 4, parts=1) == 600 * received
    assert _parameter_traffic(run.trainer, 800, 4, parts=2) == 600 * received_in_two_parts


def test_a_plan_counts_the_micro_batches(tmp_path: Path) -> None:
    how = ["trainer=fsdp2", "trainer.devices=2", "trainer.micro_batch_size=7"]
    text = plan(run_from(composed([*tiny_overrides(tmp_path), *how])))  # 16 rows, so 3 parts
    weights = 2 * numbers(text, "memory of a rank")["weights"]
    assert numbers(text, "received")["gradients and weights"] == pytest.approx(
        (9 + 3) / 2 * weights, rel=0.01
    )


@pytest.mark.parametrize("devices", ["-1", "0", "'0,1'", "many", "1.5", "true", "null"])
def test_devices_are_a_number_or_auto(tmp_path: Path, devices: str) -> None:
    with pytest.raises(ConfigError, match=r"^trainer\.devices="):
        run_from(composed([*tiny_overrides(tmp_path), f"trainer.devices={devices}"]))


def test_auto_is_one_process_on_a_cpu(tmp_path: Path) -> None:
    overrides = ["trainer.devices=auto", "trainer.num_nodes=4"]
    assert " on 4 ranks" in plan(run_from(composed([*tiny_overrides(tmp_path), *overrides])))


@pytest.mark.parametrize("size", ["3", "0", "-1", "8"])
def test_groups_that_ranks_cannot_form_are_refused(tmp_path: Path, size: str) -> None:
    overrides = ["trainer.devices=4", f"objective.group_size={size}"]
    with pytest.raises(
        ConfigError, match=rf"^objective\.group_size={size} has to divide .* 4: take 1, 2, 4, or null"
    ):
        plan(run_from(composed([*tiny_overrides(tmp_path), *overrides])))


def test_what_runs_again_costs_operations_and_saves_memory(tmp_path: Path) -> None:
    plain, blocks, parts = (
        plan(run_from(composed([*tiny_overrides(tmp_path), "model.text.layers=4", *overrides])))
        for overrides in ([], ["trainer.activation_checkpointing=true"], ["trainer.micro_batch_size=16"])
    )
    kept = [numbers(text, "memory of a rank")["activations"] for text in (plain, blocks, parts)]
    assert kept[1] < 0.6 * kept[0]
    assert kept[2] == pytest.approx(0.5 * kept[0], rel=0.01)
    flops = [numbers(text, "a sample") for text in (plain, blocks, parts)]
    towers = flops[0]["image tower"] + flops[0]["text tower"]
    assert "computed again" not in flops[0]
    assert 0.3 * towers / 3 < flops[1]["computed again"] < towers / 3
    assert flops[2]["computed again"] == pytest.approx(towers / 3, abs=2e-3)
    assert flops[1]["image tower"] == flops[0]["image tower"]


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
        image = torch.zeros(rows, 3, 1, 1, dtype=torch.uint8)
        work.add({"image": image, "text": torch.zeros(rows, length, dtype=torch.int64)})
        done.append(work.read()["tflops"])
        assert work.read() == {}
    assert done[1] == pytest.approx(2 * done[0])
    assert done[2] > done[0]


def test_work_of_images_alone_grows_with_their_number(tmp_path: Path) -> None:
    work = Work.of(run_from(composed(tiny_images(tmp_path))).model, torch.device("cpu"))
    done = []
    for rows in (4, 8):
        work.add({"image": torch.zeros(rows, 3, 1, 1, dtype=torch.uint8)})
        done.append(work.read()["tflops"])
    assert done[1] == pytest.approx(2 * done[0])
    assert done[0] > 0
