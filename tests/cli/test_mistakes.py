"""What users get wrong: one message with the key, no stack trace, an exit code other than 0."""

import subprocess
import sys
from pathlib import Path

import pytest
from toy_run import composed, tiny_overrides

from vlm.cli.train import train_from
from vlm.data.writer import ShardWriter
from vlm.errors import ConfigError, DataError, VlmError


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vlm.cli.train", "experiment=toy", "optimiser.lr=1"], "optimiser"),
        (["vlm.cli.train", "experiment=toy", "optimizer.lrr=1"], "lrr"),
        (["vlm.cli.train", "experiment=toy", "+optimizer.lrr=1"], "optimizer.lrr is not a key"),
        (["vlm.cli.train", "experiment=tyo"], "tyo"),
        (["vlm.cli.train", "run.name=x"], "no value for data.train.shards, trainer.max_steps"),
        (["vlm.cli.main", "evaluate", "run=nowhere"], "nowhere"),
        (["vlm.cli.main", "evaluate", "run=x", "suit=toy"], "suit"),
        (["vlm.cli.main", "evaluate", "run=x", "suite=zero_shot"], "suite.root"),
        (
            ["vlm.cli.train", "experiment=toy", "suite=null"],
            "use captioning, captioning/coco, coca_toy, compositional, ",
        ),
        (
            [
                *("vlm.cli.train", "experiment=toy", "suite=captioning", "suite.root=x"),
                "suite.evaluators.captioning.decoding.beams=two",
            ],
            "decoding.beams=two must be a whole number from 1 on",
        ),
        (["vlm.cli.main", "embed", "data=x.tar", "out=x"], "set either run="),
        (["vlm.cli.main", "embed", "run=nowhere", "data=x.tar", "out=x"], "nowhere"),
        (["vlm.cli.main", "embed", "run=x", "data=x.tar"], "no value for out"),
        (
            ["vlm.cli.main", "embed", "run=x", "preprocess.resize_mode=squash", "data=x", "out=x"],
            "leave it out",
        ),
        (["vlm.cli.main", "cluster", "features=nowhere", "k=2", "out=x"], "nowhere has no manifest.json"),
        (["vlm.cli.main", "cluster", "features=x", "k=many", "out=x"], "k"),
        (["vlm.cli.main", "interpolate", "start=x", "out=x"], "no value for end"),
        (["vlm.cli.main", "interpolate", "start=x", "end=x", "out=x", "weigths=[0]"], "weigths"),
        (["vlm.cli.main", "evalute"], "no verb 'evalute'"),
        (["vlm.cli.main", "shards", "mix"], "no verb 'mix'"),
        (["vlm.cli.main", "shards", "index", "shards=nothing-*.tar"], "matches no file"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_message(arguments: list[str], message: str) -> None:
    done = command(*arguments)
    assert done.returncode != 0
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout


def shards(folder: Path, members: dict[str, bytes], count: int = 64) -> str:
    with ShardWriter(folder, prefix="", max_samples=1000) as writer:
        for i in range(count):
            writer.write(f"{i:06d}", members)
    return f"{folder}/*.tar"


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["data.train.shards=nothing-*.tar"], DataError, r"data\.train\.shards"),
        (["data.global_batch_size=30"], ConfigError, r"data\.streams_per_group=4 does not divide"),
        (["data.num_workers=3"], ConfigError, r"data\.num_workers=3 does not divide data\.stream_groups=2"),
        (["data.global_batch_size=256"], DataError, r"200 samples, fewer than"),
        (["schedule.warmup_steps=9"], ConfigError, r"schedule\.warmup_steps=9"),
        (["trainer.devices=3"], ConfigError, r"3 ranks do not divide data\.streams_per_group=4"),
        (["+model.text.widht=3"], ConfigError, r"model\.text\.widht.*did you mean 'width'"),
        (["model.image.name=vit_tiny_patch16_223"], ConfigError, r"model\.image\.name"),
        (["data.train.captions=json.caption_fr"], DataError, r"caption_fr \(data\.train\.captions\)"),
        (["suite.evaluators.test_en.label=json.nothing"], DataError, r"json\.nothing"),
        (["+objective.margin=0.2"], ConfigError, r"objective\.margin is not a key"),
        (["optimizer.lr=fast"], ConfigError, r"optimizer\.lr='fast'"),
        (["optimizer.betas=[0.9]"], ConfigError, r"optimizer\.betas=\[0\.9\]"),
        (["trainer.precision=16-mixed"], ConfigError, r"'16-mixed' is not one of '32-true', 'bf16-mixed'"),
        (["tokenizer.context_length=999"], ConfigError, r"tokenizer\.context_length=999 exceeds"),
        (["data.preprocess.image_size=48"], ConfigError, r"data\.preprocess\.image_size=48 is not"),
        (["+suite.evaluators.mine={shards: x}"], ConfigError, r"suite\.evaluators\.mine has no _target_"),
    ],
)
def test_a_mistake_in_the_configuration_is_named_before_training(
    toy: Path, overrides: list[str], error: type[VlmError], message: str
) -> None:
    with pytest.raises(error, match=message):
        train_from(composed(tiny_overrides(toy, "run.name=mistake", *overrides)))
    assert not (toy / "runs" / "mistake").exists()


def test_shards_without_captions_say_what_they_have(toy: Path, tmp_path: Path) -> None:
    pattern = shards(tmp_path / "silent", {"png": b"", "json": b'{"title": "a cat"}'})
    overrides = ["run.name=silent", f"data.train.shards={pattern}", "data.train.captions=txt"]
    with pytest.raises(DataError, match=r"data\.train\.captions.*json\.title"):
        train_from(composed(tiny_overrides(toy, *overrides)))


def test_a_label_outside_the_class_list_names_the_sample(toy: Path, tmp_path: Path) -> None:
    pattern = shards(tmp_path / "labels", {"png": b"", "cls": b"100000"})
    overrides = ["run.name=label", f"suite.evaluators.test_en.shards={pattern}"]
    with pytest.raises(DataError, match=r"sample 000000 has cls=100000, which is not in the class list"):
        train_from(composed(tiny_overrides(toy, *overrides)))
