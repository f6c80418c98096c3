"""`vlm interpolate`: what it writes, what it does not do twice, and mistakes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import save_tiny, tiny_loaded, write_tiny_shards
from typed import said_by

from vlm.cli import evaluate as evaluate_module
from vlm.inference import save_model

SUITE = """
evaluators:
  search:
    _target_: vlm.evaluation.Retrieval
    shards: {shards}
    captions: [txt]
    relevance: json.colour
  choice:
    _target_: vlm.evaluation.Compositional
    cases:
      _target_: vlm.evaluation.CasesFromShards
      shards: {shards}
      fields: {{true_captions: json.caption_en, each_false_caption: json.false}}
  names:
    _target_: vlm.evaluation.ZeroShot
    shards: {shards}
    classes: {{_target_: vlm.evaluation.ClassesFromShards, shards: {shards}, name: json.caption_zh, label: json.colour}}
    label: json.colour
    templates: ["{{c}}"]
"""  # noqa: E501
METRICS = "search/image_retrieval_recall@1"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints, shards, and a suite of them."""
    folder = tmp_path_factory.mktemp("made")
    save_tiny(folder / "start")
    loaded = tiny_loaded()
    torch.manual_seed(1)
    save_model(
        folder / "end",
        weights={name: value + torch.randn(value.shape) for name, value in loaded.model.state_dict().items()},
        spec=loaded.model.spec,
        preprocess=loaded.preprocess,
        tokenizer=loaded.tokenizer,
        step=9,
        config={},
    )
    shards = write_tiny_shards(folder / "shards", num_samples=9)
    (folder / "recipes" / "suite").mkdir(parents=True)
    (folder / "recipes" / "suite" / "tiny.yaml").write_text(SUITE.format(shards=shards))
    (folder / "recipes" / "suite" / "few.yaml").write_text(
        SUITE.format(shards=shards).partition("  choice:")[0]
    )
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("start", "end", "recipes"):
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the checkpoints that are scored from now on."""
    names: list[str] = []
    from vlm import inference

    load = inference.load

    def noted(path: Path, **options: object) -> object:
        names.append(path.name)
        return load(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(inference, "load", noted)
    return names


def run(monkeypatch: pytest.MonkeyPatch, *words: str, verb: str = "interpolate") -> str:
    """What the command prints, then the message it ends with."""
    return said_by(monkeypatch, verb, "--config-dir", "recipes", "device=cpu", *words)


def interpolate(monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    return run(monkeypatch, "start=start", "end=end", "out=out", *words)


def test_each_weight_is_a_checkpoint_with_scores_as_vlm_evaluate_gives_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = interpolate(monkeypatch, "suite=tiny", "weights=[1,0,0.5]")
    assert "Error" not in said
    content = json.loads(Path("out/trade_off.json").read_text())
    assert (content["x"], content["y"]) == ("names/acc1", "choice/acc")
    assert [point["weight"] for point in content["points"]] == [0, 0.5, 1]
    given = {0: "start", 0.5: "out/checkpoints/weight_0.5", 1: "end"}
    for point in content["points"]:
        run(monkeypatch, f"run={given[point['weight']]}", "suite=tiny", "out=again", verb="evaluate")
        again = json.loads(Path("again/results.json").read_text())["results"]
        assert point["metrics"] == {f"{n}/{m}": v for n, r in again.items() for m, v in r["metrics"].items()}
        assert (Path("out/evaluation") / Path(point["checkpoint"]).name / "report.html").is_file()
    with Image.open("out/trade_off.png") as picture:
        assert len(picture.getcolors(1 << 16) or []) > 3


def test_what_is_done_is_not_done_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, scored: list[str]
) -> None:
    asked = ["suite=tiny", "weights=[0,0.5]"]
    first = interpolate(monkeypatch, *asked)
    again = interpolate(monkeypatch, *asked)
    assert scored == ["weight_0", "weight_0.5"]
    assert again.count(": there already") == 2
    assert again.partition("\n\n")[2] == first.partition("\n\n")[2]

    (folder / "out/evaluation/weight_0/measured.json").unlink()  # as if it had been killed in the second
    interpolate(monkeypatch, "suite=tiny", "weights=[0,0.5,1]")
    assert scored[2:] == ["weight_0", "weight_1"]
    interpolate(monkeypatch, "suite=few", f"x={METRICS}", f"y={METRICS}", "weights=[0.5]")
    assert scored[4:] == ["weight_0.5"]  # another suite


def test_axes_are_what_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["suite=tiny", "weights=[0.5]", f"x={METRICS}"]
    assert f"weight  {METRICS}  choice/acc" in interpolate(monkeypatch, *words)
    assert json.loads(Path("out/trade_off.json").read_text())["x"] == METRICS
    said = interpolate(monkeypatch, "suite=few", "weights=[0.5]")
    assert "picture: none, as the suite has no" in said
    assert json.loads(Path("out/trade_off.json").read_text())["x"] is None


def test_without_a_suite_there_are_checkpoints_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = interpolate(monkeypatch, "suite=none")
    assert len(said.splitlines()) == len(list(Path("out/checkpoints").iterdir())) == 5
    assert sorted(path.name for path in Path("out").iterdir()) == ["checkpoints"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["weights=[0,1.5]"], "weights=[0.0, 1.5] have to be numbers from 0, the start, to 1, the end"),
        (["weights=[]"], "weights=[] have to be numbers"),
        (["weights=[half]"], "weights"),
        (["start=nowhere"], "nowhere is not a folder"),
        (["suite=tiny", "x=name/acc1"], "x=name/acc1 names no evaluator of the suite; there are search"),
        (["suite=none", "y=choice/acc"], "y=choice/acc names no evaluator of the suite"),
        ([], "suite is not set, and end was trained without one"),
        (["suite=tiny", "batch_size=0"], "batch_size=0"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_nothing(
    words: list[str], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = interpolate(monkeypatch, *words)
    assert message in said
    assert "Error: " in said
    assert not Path("out").exists()


def test_an_axis_that_nothing_measures_is_said_once_it_is_known(
    folder: Path, monkeypatch: pytest.MonkeyPatch, scored: list[str]
) -> None:
    said = interpolate(monkeypatch, "suite=tiny", "y=choice/swapped")
    assert "y=choice/swapped is no metric; there are choice/acc" in said
    assert scored == ["weight_0"]
    assert evaluate_module.place_of(Path("out/checkpoints/weight_0")) == Path("out/evaluation/weight_0")
