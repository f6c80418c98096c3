import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_run import composed, tiny_overrides

import vlm
from vlm.cli.train import train_from
from vlm.errors import ConfigError
from vlm.objectives.contrastive import ContrastiveObjective
from vlm.training.callbacks import Evaluate


def losses(run: Path) -> dict[int, float]:
    with (run / "metrics.csv").open(newline="") as file:
        return {
            int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]
        }


def train(toy: Path, *overrides: str) -> Path:
    return train_from(composed(tiny_overrides(toy, *overrides)))


@pytest.fixture(scope="module")
def finished(toy: Path) -> Path:
    return train(toy, "run.name=finished")


def test_a_run_logs_every_promised_number(finished: Path) -> None:
    with (finished / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    promised = {
        "train/loss",
        "train/loss/itc",
        "train/lr",
        "train/logit_scale",
        "train/grad_norm",
        "time/samples_per_s",
        "time/data_wait_share",
        "time/encode_share",
        "time/loss_share",
        "time/backward_share",
        "time/optimizer_share",
        "time/tflops",
        "memory/peak_gib",
        "data/substituted",
    }
    assert promised <= rows[0].keys()
    assert all(rows[0][name] for name in promised)
    assert [int(row["step"]) for row in rows if row["train/loss"]] == list(range(1, 9))
    assert "eval/held_out_en/acc1" in rows[-1]
    assert rows[-1]["eval/choice_zh/swapped_acc"]


def test_a_resumed_run_is_bit_identical_to_the_uninterrupted_one(toy: Path, finished: Path) -> None:
    cut = finished.parent / "cut"
    shutil.copytree(finished, cut)
    shutil.rmtree(cut / "checkpoints" / "step_00000008")
    train(toy, "run.name=cut", "run.resume=true")
    assert losses(cut) == losses(finished)
    weights = [vlm.load(run).model.state_dict() for run in (cut, finished)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_run_stopped_before_its_first_checkpoint_starts_again(toy: Path) -> None:
    folder = toy / "runs" / "early"
    (folder / "checkpoints" / ".step_00000004.tmp").mkdir(parents=True)
    (folder / "tokenizer.json").write_text("cut short")
    train(toy, "run.name=early", "run.resume=true", "trainer.max_steps=4", "suite=none", "logger=none")
    assert vlm.load(folder).tokenizer.vocab_size > 256


def test_data_may_move_between_checkpoint_and_resume(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toy)
    short = ["trainer.max_steps=5", "suite=none", "run.name=moved"]
    folder = train(toy, *short, "paths.data=data")
    shutil.rmtree(folder / "checkpoints" / "step_00000005")
    (tmp_path / "data2").symlink_to(toy / "data")
    train(toy, *short, f"paths.data={tmp_path}/data2", "run.resume=true")
    assert (folder / "checkpoints" / "step_00000005").is_dir()


def test_resuming_a_finished_run_does_nothing(toy: Path, finished: Path) -> None:
    before = (finished / "metrics.csv").read_bytes()
    train(toy, "run.name=finished", "run.resume=true")
    assert (finished / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.resume=false", r"finished is not empty; go on with it by run\.resume=true"),
        ("optimizer.lr=0.5", r"optimizer\.lr: was 0\.001, is 0\.5"),
        ("data.global_batch_size=64", r"data\.global_batch_size: was 32, is 64"),
        ("trainer.max_steps=9", r"trainer\.max_steps: was 8, is 9"),
        ("trainer.gradient_clip=null", r"trainer\.gradient_clip: was 1\.0, is None"),
        ("run.seed=1", r"run\.seed: was 0, is 1"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(
    toy: Path, finished: Path, override: str, message: str
) -> None:
    before = sorted((finished / "checkpoints").iterdir())
    with pytest.raises(ConfigError, match=message):
        train(toy, "run.name=finished", "run.resume=true", override)
    assert sorted((finished / "checkpoints").iterdir()) == before


def test_other_groups_are_another_objective(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["run.name=groups", "objective.group_size=node", "suite=none", "run.resume=true"]
    with monkeypatch.context() as patch:
        patch.setattr(ContrastiveObjective, "setup", lambda self, topology: setattr(self, "num_groups", 4))
        train(toy, *settings)
    shutil.rmtree(toy / "runs" / "groups" / "checkpoints" / "step_00000008")
    was = r"objective\.group_size: was '4 groups of 8 pairs', is 'one group of all pairs'"
    with pytest.raises(ConfigError, match=rf"{was}.*run\.accept_changes=\[objective\.group_size\]"):
        train(toy, *settings)
    train(toy, *settings, "run.accept_changes=[objective.group_size]")
    shutil.rmtree(toy / "runs" / "groups" / "checkpoints" / "step_00000008")
    # The same groups by another name, and the same loss by other means.
    settings.remove("objective.group_size=node")
    train(toy, *settings, "run.accept_changes=[objective.group_size]", "objective.implementation=dense")


def test_two_ranks_with_workers_train_like_one_without(toy: Path, finished: Path) -> None:
    overrides = tiny_overrides(toy, "run.name=two", "trainer.devices=2", "data.num_workers=1")
    command = [sys.executable, "-m", "vlm.cli.train", *overrides]
    subprocess.run(command, check=True, capture_output=True, timeout=280)
    two, one = losses(toy / "runs" / "two"), losses(finished)
    assert two.keys() == one.keys()
    assert [two[step] for step in two] == pytest.approx([one[step] for step in one], abs=1e-5)


def test_a_run_shorter_than_the_logging_interval_logs_its_end_and_warns_of_nothing(
    toy: Path, recwarn: pytest.WarningsRecorder
) -> None:
    run = train(toy, "run.name=short", "trainer.max_steps=3", "trainer.log_every_n_steps=50")
    assert list(losses(run)) == [3]
    assert not [warning for warning in recwarn if "logging interval" in str(warning.message)]


def test_bf16_trains(toy: Path) -> None:
    run = train(toy, "run.name=bf16", "trainer.precision=bf16-mixed", "trainer.max_steps=4", "suite=none")
    values = losses(run)
    assert len(values) == 4
    assert all(torch.isfinite(torch.tensor(v)) for v in values.values())


def test_wandb_logs_offline(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = train(
        toy, "run.name=w", "logger=wandb", "logger.wandb.offline=true", "trainer.max_steps=3", "suite=none"
    )
    assert list((run / "wandb").glob("offline-run-*"))


def test_the_checkpoint_describes_the_run(finished: Path) -> None:
    checkpoint = finished / "checkpoints" / "step_00000008"
    config: dict[str, Any] = json.loads((checkpoint / "config.json").read_text())
    assert config["optimizer"]["lr"] == 1e-3
    assert sorted(path.name for path in checkpoint.iterdir()) == [
        "config.json",
        "evaluation.json",
        "model.json",
        "model.safetensors",
        "optimizer.safetensors",
        "tokenizer.json",
    ]


def test_warm_up_longer_than_the_run_is_refused_before_anything_is_written(toy: Path) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.warmup_steps=8"):
        train(toy, "run.name=never", "schedule.warmup_steps=8")
    assert not (toy / "runs" / "never").exists()


def test_equal_captions_are_masked_when_the_key_says_so(toy: Path) -> None:
    run = train(
        toy, "run.name=masked", "objective.mask_equal_captions=true", "trainer.max_steps=3", "suite=none"
    )
    with (run / "metrics.csv").open(newline="") as file:
        assert all(row["train/equal_captions"] for row in csv.DictReader(file))


def scores(run: Path) -> dict[int, str]:
    """By step, of the rows that have them."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {int(row["step"]): row["eval/choice_en/acc"] for row in rows if row.get("eval/choice_en/acc")}


def test_an_evaluation_before_the_first_step_is_a_row_and_changes_nothing(
    toy: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(toy, "run.name=before", "evaluation.before=true", "evaluation.every_n_steps=4")
    assert list(scores(run)) == [0, 4, 8]
    assert losses(run) == losses(finished)
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, two = (folder / "checkpoints" / "step_00000008" / name for folder in (run, finished))
        assert one.read_bytes() == two.read_bytes()
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_00000004", "step_00000008"]

    before = scores(run)
    shutil.rmtree(run / "checkpoints" / "step_00000008")
    evaluated: list[int] = []
    act = Evaluate.act
    monkeypatch.setattr(
        Evaluate, "act", lambda self, *args: (evaluated.append(args[1].step), act(self, *args))
    )
    train(toy, "run.name=before", "evaluation.before=true", "evaluation.every_n_steps=4", "run.resume=true")
    assert evaluated == [8]  # not where it goes on from
    assert scores(run) == before


def test_the_row_before_is_of_the_weights_that_the_run_begins_with(toy: Path, finished: Path) -> None:
    run = train(toy, "run.name=after", "evaluation.before=true", f"init_from={finished}", "run.seed=3")
    first, *_, last = scores(run).items()
    assert first == (0, scores(finished)[8])
    assert last[0] == 8
