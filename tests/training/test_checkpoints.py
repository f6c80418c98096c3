"""What stays of a run when it is stopped, damaged, or out of space."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from small_disk import small_disk
from toy_run import composed, tiny_overrides

import vlm
from vlm.cli.train import train_from
from vlm.errors import CheckpointError, ConfigError, TrainingError
from vlm.training import run as run_module


def train(toy: Path, *overrides: str) -> Path:
    return train_from(composed(tiny_overrides(toy, "suite=none", *overrides)))


def losses(run: Path) -> dict[str, str]:
    with (run / "metrics.csv").open(newline="") as file:
        return {row["step"]: row["train/loss"] for row in csv.DictReader(file)}


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def whole(toy: Path) -> Path:
    return train(toy, "run.name=whole_run", "checkpoint.every_n_steps=2", "checkpoint.keep_last=null")


@pytest.fixture
def cut(toy: Path, whole: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of the whole run without its last checkpoint."""
    copy = toy / "runs" / request.node.name.replace("[", "_").replace("]", "")
    shutil.copytree(whole, copy)
    shutil.rmtree(copy / "checkpoints" / "step_00000008")
    return copy


def resume(toy: Path, run: Path, *overrides: str) -> Path:
    kept = ["checkpoint.every_n_steps=2", "checkpoint.keep_last=null"]
    return train(toy, f"run.name={run.name}", "run.resume=true", *kept, *overrides)


def test_a_damaged_checkpoint_is_passed_over_and_written_again(
    toy: Path, whole: Path, cut: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (cut / "checkpoints" / "step_00000006" / "optimizer.safetensors").write_bytes(b"cut short")
    resume(toy, cut)
    assert "optimizer.safetensors has 9 bytes" in caplog.text
    assert "falling back" in caplog.text
    assert losses(cut) == losses(whole)
    assert names(cut) == names(whole)


def test_what_was_passed_over_does_not_count_as_the_newest(toy: Path, cut: Path) -> None:
    """Else pruning would keep the damaged ones and delete the one just written."""
    for step in (4, 6):
        (cut / "checkpoints" / f"step_{step:08d}" / "model.safetensors").write_bytes(b"cut short")
    changes = ["trainer.max_steps=3", "run.accept_changes=[trainer]"]  # as if it were stopped there
    resume(toy, cut, "checkpoint.keep_last=1", *changes)
    assert names(cut) == ["damaged_step_00000004", "damaged_step_00000006", "step_00000003"]
    assert vlm.load(cut).model.logit_scale.isfinite()


def test_a_checkpoint_without_its_description_is_passed_over_too(
    toy: Path, whole: Path, cut: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (cut / "checkpoints" / "step_00000006" / "model.json").unlink()
    resume(toy, cut)
    assert "step_00000006/model.json cannot be read" in caplog.text
    assert losses(cut) == losses(whole)
    for path in (cut / "checkpoints").glob("step_*"):
        (path / "model.json").unlink()
    with pytest.raises(CheckpointError, match=r"every checkpoint of .* is damaged"):
        resume(toy, cut)


def test_a_finished_run_keeps_its_configuration(toy: Path, whole: Path) -> None:
    before = (whole / "config.json").read_bytes()
    resume(toy, whole, "optimizer.lr=0.002", "run.accept_changes=[optimizer.lr]")
    assert (whole / "config.json").read_bytes() == before


def test_two_runs_cannot_train_in_one_folder(toy: Path, cut: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_LOCK_SECONDS", 0.1)
    with (
        FileLock(cut.with_name(f".{cut.name}.lock")),
        pytest.raises(ConfigError, match="another process is training"),
    ):
        resume(toy, cut)


def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_anew(toy: Path, cut: Path) -> None:
    for path in (cut / "checkpoints").iterdir():
        (path / "model.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"every checkpoint of .* is damaged"):
        resume(toy, cut)


def test_what_a_killed_process_left_is_swept_up(toy: Path, whole: Path, cut: Path) -> None:
    for name in (".step_00000008.tmp", ".step_00000002.old"):
        shutil.copytree(cut / "checkpoints" / "step_00000004", cut / "checkpoints" / name)
    drafts = [cut / ".config.json.0f.partial", cut / "checkpoints" / ".best.json.0f.partial"]
    for draft in drafts:
        draft.write_text("{")
    resume(toy, cut)
    assert names(cut) == names(whole)
    assert not any(draft.exists() for draft in drafts)


def test_the_last_checkpoints_and_the_best_stay(toy: Path) -> None:
    run = train_from(
        composed(
            tiny_overrides(
                toy,
                "run.name=kept",
                "checkpoint.every_n_steps=1",
                "checkpoint.keep_last=2",
                "checkpoint.keep_best=eval/held_out_en/acc1",
                "evaluation.every_n_steps=2",
            )
        )
    )
    with (run / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["eval/held_out_en/acc1"]]
    scores = [float(row["eval/held_out_en/acc1"]) for row in rows]
    best = rows[scores.index(max(scores))]
    stored = json.loads((run / "checkpoints" / "best.json").read_text())
    assert stored["checkpoint"] == f"step_{int(best['step']):08d}"
    assert stored["value"] == pytest.approx(max(scores))
    assert set(names(run)) == {"best.json", "step_00000007", "step_00000008", stored["checkpoint"]}


def test_a_metric_that_no_evaluation_gives_cannot_pick_the_best(toy: Path) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint\.keep_best=eval/x/acc1 is no metric of this run"):
        train(toy, "run.name=no_best", "checkpoint.keep_best=eval/x/acc1")


def test_checkpoints_are_written_by_time(toy: Path) -> None:
    run = train(
        toy,
        "run.name=by_time",
        "checkpoint.every_n_steps=100",
        "checkpoint.every_minutes=1e-9",
        "checkpoint.keep_last=null",
    )
    assert len(names(run)) >= 4  # at least every other step


def test_a_change_is_refused_until_it_is_confirmed(toy: Path, cut: Path) -> None:
    with pytest.raises(ConfigError, match=r"confirm by run\.accept_changes=\[optimizer\.lr\]"):
        resume(toy, cut, "optimizer.lr=0.002")
    resume(toy, cut, "optimizer.lr=0.002", "run.accept_changes=[optimizer.lr]")
    assert (cut / "checkpoints" / "step_00000008").is_dir()


def test_what_weights_depend_on_cannot_be_confirmed(toy: Path, cut: Path) -> None:
    with pytest.raises(ConfigError, match=r"the weights depend on it: model\.text\.layers"):
        resume(toy, cut, "model.text.layers=2", "run.accept_changes=[model]")


def test_other_shards_are_noticed(toy: Path, cut: Path) -> None:
    for path in (cut / "checkpoints").iterdir():
        description = json.loads((path / "model.json").read_text())
        assert description["data"]["data.train"]["samples"] == 200
    with pytest.raises(ConfigError, match=r"data\.train\.shards: was .*, is "):
        resume(toy, cut, f"data.train.shards={toy}/data/toy/test/*.tar", "data.global_batch_size=8")


def test_numbers_that_are_not_finite_end_the_run_and_keep_the_batch(toy: Path) -> None:
    with pytest.raises(TrainingError, match=r"not finite at step [2-8]; .*rank|not finite at step") as caught:
        train(toy, "run.name=explodes", "optimizer.lr=1e30", "trainer.gradient_clip=null")
    run = toy / "runs" / "explodes"
    (folder,) = (run / "not_finite").iterdir()
    assert str(folder) in str(caught.value)
    rows = json.loads((folder / "rank_0.json").read_text())
    assert len(rows) == 32
    assert all(".tar" in row["key"] and row["caption"] for row in rows)
    assert (folder / "rank_0.png").is_file()
    for path in (run / "checkpoints").glob("step_*"):
        assert all(value.isfinite().all() for value in vlm.load(path).model.state_dict().values())


@pytest.mark.parametrize(
    ("number", "devices", "code"),
    [
        (signal.SIGTERM, 1, 75),
        pytest.param(signal.SIGUSR1, 2, 75, marks=pytest.mark.long),
        pytest.param(signal.SIGINT, 1, 130, marks=pytest.mark.long),
    ],
)
def test_a_signal_saves_and_ends_the_run_which_then_goes_on_exactly(
    toy: Path, number: signal.Signals, devices: int, code: int
) -> None:
    name = f"{number.name}_{devices}"
    long = ["trainer.max_steps=40", "schedule.warmup_steps=2", "checkpoint.every_n_steps=1000"]
    shared = [*long, "suite=none", f"trainer.devices={devices}", "data.num_workers=1"]
    reference = toy / "runs" / f"{name}_whole"
    command = [sys.executable, "-m", "vlm.cli.train"]
    subprocess.run(
        [*command, *tiny_overrides(toy, f"run.name={name}_whole", *shared)],
        check=True,
        capture_output=True,
        timeout=200,
    )
    overrides = tiny_overrides(toy, f"run.name={name}", *shared)
    metrics = toy / "runs" / name / "metrics.csv"
    with subprocess.Popen(
        [*command, *overrides], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as run:
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
            assert run.poll() is None
            time.sleep(0.01)
        run.send_signal(number)
        errors = run.communicate(timeout=120)[1]
    assert run.returncode == code, errors
    assert f"{number.name}: " in errors
    assert "Traceback" not in errors
    assert 3 <= len(losses(metrics.parent)) < 40
    subprocess.run([*command, *overrides, "run.resume=true"], check=True, capture_output=True, timeout=200)
    assert losses(metrics.parent) == losses(reference)


def test_a_full_disk_is_one_message_and_costs_no_earlier_checkpoint(toy: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path, size="1200k") as disk:
        with pytest.raises(CheckpointError, match=r"cannot be written: .*[Nn]o space left") as caught:
            train(
                toy, "run.name=full", f"paths.runs={disk}", "checkpoint.every_n_steps=1", "logger=none",
                "checkpoint.keep_last=null",
            )  # fmt: skip
        assert "run.resume=true" in str(caught.value)
        stored = names(disk / "full")
        assert stored[0] == "step_00000001"
        assert all(not name.startswith(".") for name in stored)
        for name in stored:
            assert torch.isfinite(vlm.load(disk / "full" / "checkpoints" / name).model.logit_scale).all()
