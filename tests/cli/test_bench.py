"""`vlm bench` as a user types it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_shards import write_shards
from toy_run import TINY_MODEL, composed

from vlm.cli.bench import VERBS
from vlm.errors import ConfigError
from vlm.settings import build

LOSSES = ["rows=64", "dim=16", "rounds=1", "device=cpu"]


def bench(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vlm.cli.main", "bench", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


def test_data_takes_the_arguments_of_train(tmp_path: Path) -> None:
    write_shards(tmp_path, [40])
    arguments = ["data.train.shards=*.tar", "data.global_batch_size=16", "model=toy", *TINY_MODEL]
    done = bench("data", *arguments, "data.num_workers=0", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    names = [line.split("  ")[0] for line in done.stdout.splitlines()[1:9]]
    stages = ["read", "decode", "transform", "tokenize", "collate"]
    assert names == ["stage", *stages, "one core, all of it", "loader, 0 workers"]
    assert "bottleneck: " in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".parquet") == [
        ".index.lock",
        "00000.tar",
        "sizes.json",
    ]


def test_loss_writes_a_table_of_what_each_implementation_takes(tmp_path: Path) -> None:
    done = bench(
        "loss", "rows=1024", "dim=32", "rounds=1", "device=cpu", "tile=256", "out=out", folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out/loss.json").read_text())
    assert [row["loss"] for row in found["rows"]] == [
        f"{loss} {name}" for loss in ("softmax", "sigmoid") for name in ("dense", "local_rows", "tiled")
    ]
    peaks = {row["loss"]: row["peak MiB"] for row in found["rows"]}
    assert peaks["softmax dense"] > 12  # three copies of the logits, of 4 MiB each
    assert peaks["softmax tiled"] < peaks["softmax dense"] / 2
    assert (tmp_path / "out/loss.md").read_text().count("\n| ") == 8


@pytest.mark.long
def test_loss_takes_the_part_of_one_of_many_ranks(tmp_path: Path) -> None:
    done = bench("loss", *LOSSES, "columns=1024", "losses=[softmax]", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "64 rows, 1024 columns" in done.stdout


def test_step_says_where_its_time_goes(tmp_path: Path) -> None:
    tiny = ["experiment=toy", *TINY_MODEL, "data.global_batch_size=8", "trainer.accelerator=cpu"]
    few = ["bench.steps=2", "bench.warmup=1", "bench.rounds=1", "bench.out=out", "bench.text_length=12"]
    done = bench("step", *tiny, *few, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out/step.json").read_text())
    row = found["rows"][0]
    assert row["tokens"] == 12
    assert 0 < row["MFU %"] < 100
    result = found["raw"]["vlm"][0]
    assert result["samples_per_s"] > 0
    assert sum(result["split"].values()) == pytest.approx(1)
    assert min(result["split"][part] for part in ("image", "text", "loss", "backward", "optimizer")) > 0
    assert result["parameters"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.long
def test_scale_measures_this_machine_and_computes_the_others(tmp_path: Path) -> None:
    sizes = ["pairs=64", "columns=256", "dim=16", "most_ranks=16", "rounds=1", "device=cpu", "out=out"]
    done = bench("scale", *sizes, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out/scale.json").read_text())
    speed = found["raw"]["speed"]
    assert min(speed["local_rows_ns"], speed["tiled_ns"], speed["node_gb_per_s"]) > 0
    assert speed["fabric_gb_per_s"] == speed["node_gb_per_s"]
    assert len(found["rows"]) == 3 * 5
    assert (tmp_path / "out/scale.md").read_text().count("\n| ") == 3 * 5 + 2
    assert (tmp_path / "out/scale.png").stat().st_size > 1000


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, tmp_path: Path) -> None:
    done = bench(verb, "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"vlm bench {verb}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "data.train.shards=none/*.tar"], "matches no file"),
        (["data"], "no value for data.train.shards"),
        (["loss", *LOSSES, "peer=open_clip", "peer_python=nowhere"], "peer_python=nowhere cannot be started"),
        (["loss", *LOSSES, "peer=open_clip"], "pip install open_clip_torch"),
        (["step", "experiment=toy", "trainer.devices=2"], "trainer.devices=2 trainer.num_nodes=1 are more"),
        (["step", "experiment=toy", "bench.steps=0"], "bench.steps=0 must be at least 1"),
        (["step", "experiment=toy", "bench.text_length=1"], "bench.text_length=1 must be at least 2"),
        (["scale", "columns=1000"], "columns=1000 is no multiple of pairs=1024"),
        (["scale", "step=nowhere.json"], "step=nowhere.json is no step.json"),
        (["scale", "fabric_gb_per_s=0"], "fabric_gb_per_s=0 must be above 0"),
        (["step", "experiment=toy", "model=toy_bag_of_words", "bench.peer=open_clip"], "bag_of_words"),
        (["loss", "rows=0"], "rows=0 must be at least 1"),
        (["loss", *LOSSES[:3], "device=cuda:9"], "device=cuda:9 cannot be used"),
    ],
)
def test_a_mistake_is_one_message(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = bench(*arguments, folder=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("columns=-64", "columns=-64 must be at least 1"),
        ("columns=0", "columns=0 must be at least 1"),
        ("columns=32", "columns=32 is no multiple of rows=64"),
        ("losses=[softmin]", "losses=[softmin] has to name one or more of softmax, sigmoid"),
        ("losses=[]", "losses=[] has to name one or more of softmax, sigmoid"),
        ("implementations=[]", "implementations=[] has to name one or more of dense, local_rows, tiled"),
    ],
)
def test_a_loss_that_cannot_be_measured_is_refused(argument: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        build(composed([*LOSSES, argument], name="bench_loss"), "")
