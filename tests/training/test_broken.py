"""What a run tells of broken samples."""

import csv
import re
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from small_shards import write_tar
from toy_run import composed, tiny_overrides

from vlm.broken import BrokenSample, Cause
from vlm.cli.train import train_from
from vlm.errors import DataError
from vlm.training.broken import BrokenSamples

CPU = torch.device("cpu")


def batch(size, *broken):
    return {"key": ["k"] * size, "broken": list(broken)}


def broken(key, cause=Cause.NO_CAPTION):
    return BrokenSample(cause, "a.tar", key, "it has, say, a reason")


def listed(folder):
    with (folder / "broken_samples.csv").open(newline="") as file:
        return [
            (row["cause"], row["shard"], row["key"], row["step"], row["reason"])
            for row in csv.DictReader(file)
        ]


def test_counts_are_totals_by_cause(tmp_path):
    told = BrokenSamples(tmp_path, max_share=1.0)
    assert told.metrics(device=CPU) == {"data/substituted": 0.0}
    told.add(batch(8, broken("1"), broken("2", Cause.NO_IMAGE)), step=1)
    told.add(batch(8, broken("3")), step=2)
    told.metrics(device=CPU)
    told.add(batch(8, broken("4")), step=3)
    assert told.metrics(device=CPU) == {
        "data/substituted": 4.0,
        "data/broken/no_caption": 3.0,
        "data/broken/no_image": 1.0,
    }


def test_the_list_names_each_sample_once_and_goes_on_with_the_run(tmp_path):
    first = BrokenSamples(tmp_path, max_share=1.0)
    assert not (tmp_path / "broken_samples.csv").exists()
    first.add(batch(8, broken("1"), broken("1")), step=5)
    first.metrics(device=CPU)
    with (tmp_path / "broken_samples.csv").open("a") as file:
        file.write("no_caption,a.tar,cut sho")  # killed while writing
    second = BrokenSamples(tmp_path, max_share=1.0)
    second.add(batch(8, broken("1"), broken("2")), step=6)
    second.metrics(device=CPU)
    reason = "it has, say, a reason"
    assert listed(tmp_path) == [
        ("no_caption", "a.tar", "1", "5", reason),
        ("no_caption", "a.tar", "2", "6", reason),
    ]


def test_the_list_is_bounded(tmp_path):
    told = BrokenSamples(tmp_path, max_share=1.0)
    for start in range(0, 12_000, 500):
        told.add(batch(500, *(broken(str(n)) for n in range(start, start + 500))), step=start)
        told.metrics(device=CPU)
    assert len(listed(tmp_path)) == 10_000
    assert told.metrics(device=CPU)["data/substituted"] == 12_000


def test_a_list_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
    told = BrokenSamples(tmp_path / "absent", max_share=1.0)
    told.add(batch(8, broken("1")), step=1)
    assert told.metrics(device=CPU)["data/substituted"] == 1
    assert "broken_samples.csv cannot be written" in caplog.text


def feed(told, share, samples):
    for start in range(0, samples, 100):
        told.add(batch(100, *(broken(f"{start}-{n}") for n in range(round(100 * share)))), step=start)
        told.metrics(device=CPU)
        told.check()


def test_too_many_broken_samples_end_the_run(tmp_path):
    feed(BrokenSamples(tmp_path, max_share=0.05), 0.05, 30_000)
    feed(BrokenSamples(tmp_path, max_share=0.05), 1.0, 900)  # too few to judge
    with pytest.raises(DataError) as caught:
        feed(BrokenSamples(tmp_path, max_share=0.05), 0.06, 2_000)
    message = str(caught.value)
    assert message.startswith(
        "60 of the last 1000 samples are broken, more than data.max_broken_share=0.05: no_caption 60. "
        "The first: a.tar/0-0: it has, say, a reason; "
    )
    assert "broken_samples.csv" in message


def test_what_goes_wrong_late_is_noticed_soon(tmp_path):
    told = BrokenSamples(tmp_path, max_share=0.05)
    feed(told, 0.0, 1_000_000)
    with pytest.raises(DataError, match=r"of the last 1\d{4} samples|of the last 2\d{4} samples"):
        feed(told, 0.5, 4_000)


def damage(folder: Path, share: float) -> None:
    """Take the captions from a share of the training samples."""
    for path in sorted((folder / "data/toy/train").glob("*.tar")):
        samples: dict[str, dict[str, bytes]] = {}
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                samples.setdefault(key, {})[extension] = tar.extractfile(member).read()
        for key in list(samples)[int(len(samples) * (1 - share)) :]:
            samples[key] = {name: data for name, data in samples[key].items() if name not in ("txt", "json")}
        write_tar(path, samples)
        path.with_suffix(".index.parquet").unlink()


def test_a_run_counts_lists_and_ends_on_broken_samples(toy, tmp_path):

    shutil.copytree(toy / "data", tmp_path / "data")
    damage(tmp_path, 0.3)
    short = ["suite=none", "trainer.max_steps=40", "data.num_workers=1", "data.shuffle_samples=64"]
    with pytest.raises(DataError, match=r"more than data\.max_broken_share=0\.05: no_caption \d+"):
        train_from(composed(tiny_overrides(tmp_path, *short, "run.name=ends")))
    folder = train_from(
        composed(tiny_overrides(tmp_path, *short, "run.name=goes", "data.max_broken_share=0.5"))
    )
    with (folder / "metrics.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert 0.2 * 40 * 32 < float(last["data/substituted"]) < 0.4 * 40 * 32
    assert last["data/substituted"] == last["data/broken/no_caption"]
    rows = listed(folder)
    assert len(rows) == len({row[2] for row in rows}) == 60
    assert all(re.search(r"train/.*\.tar$", row[1]) for row in rows)
