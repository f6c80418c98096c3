import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
from fake_embedder import GREEDY, FakeWriter
from generative import mapping_of
from gloo import run_gloo
from PIL import Image
from tiny import CHINESE, COLOURS, write_tiny_shards

from vlm.distributed import Topology
from vlm.errors import ConfigError, DataError
from vlm.evaluation import (
    Captioning,
    CaptionsFromCoco,
    CaptionsFromShards,
    Result,
    Retrieval,
    captioning,
    check_parts,
)
from vlm.evaluation.meteor import NoMeteorError
from vlm.models import ModelSpec

NAMES = list(COLOURS)


@pytest.fixture(autouse=True)
def meteor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its program is installed here makes no difference."""
    monkeypatch.setattr(captioning, "meteor", lambda found, wanted: 0.25)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_shards(tmp_path_factory.mktemp("shards"), num_samples=4)


def scored(source: Any, *written: str | None, language: str = "en", num_examples: int = 2) -> Result:
    evaluator = Captioning(source, decoding=GREEDY, language=language, num_examples=num_examples)
    evaluator.check()
    return evaluator(FakeWriter(*written))


def test_metrics_and_examples_of_shards(shards: str) -> None:
    """Squares in red, green, blue and grey; the blue one is called grey, of the last nothing is said."""
    result = scored(
        CaptionsFromShards(shards, "json.caption_en"), "A red square.", "a green square", "a grey square", ""
    )
    assert result.task == "captioning"
    assert result.metrics["exact_match"] == 0.5
    assert result.metrics["mean_length"] == 9 / 4
    assert result.metrics["METEOR"] == 0.25
    brevity = math.exp(1 - 12 / 9)
    assert result.metrics["Bleu_1"] == pytest.approx(brevity * 8 / 9)
    assert result.metrics["Bleu_3"] == pytest.approx(brevity * (8 / 9 * 4 / 6 * 2 / 3) ** (1 / 3))
    assert result.metrics["Bleu_4"] == 0.0  # there are only three words
    assert result.metrics["ROUGE_L"] == pytest.approx((1 + 1 + 2 / 3 + 0) / 4)
    assert result.metrics["perplexity"] == pytest.approx(3)
    # `a` and `square` are in all captions and weigh nothing; what is right then scores for its 1- to 3-grams
    assert result.metrics["CIDEr"] == pytest.approx((7.5 + 7.5) / 4)
    assert result.num_samples == 4
    assert result.notes == {
        "num_references": 4,
        "mean_reference_length": 3.0,
        "num_missing": 0,
        "num_left_out": 0,
    }
    best, worst = result.details["examples"]["best"], result.details["examples"]["worst"]
    assert [(row["position"], row["caption"]) for row in best] == [
        (0, "A red square."),
        (1, "a green square"),
    ]
    assert best[0]["references"] == ["a red square"]
    assert best[0]["score"] == pytest.approx(7.5)
    assert {row["position"] for row in worst} == {2, 3}
    assert result.details["pictures"] == [0, 1, 2, 3]
    assert result.details["shards"] == [shards]


def test_every_caption_of_every_field_is_a_reference(shards: str) -> None:
    """The lines of txt are English and Chinese; perplexity counts the tokens of both."""
    result = scored(CaptionsFromShards(shards, ["txt"]), *(f"a {name} square" for name in NAMES))
    assert result.metrics["exact_match"] == 1.0
    assert result.notes["num_references"] == 8
    english = sum(len(f"a {name} square") for name in NAMES)
    chinese = sum(len(f"{CHINESE[name]}的正方形") for name in NAMES)
    nats = english * math.log(3) + chinese * math.log(2)
    assert result.metrics["perplexity"] == pytest.approx(math.exp(nats / (english + chinese)))


def test_chinese_is_scored_by_characters_and_without_meteor(shards: str) -> None:
    source = CaptionsFromShards(shards, "json.caption_zh")
    result = scored(source, "红色的正方形。", "绿色的圆形", "蓝色的正方形", "红色的正方形", language="zh")
    assert result.metrics["exact_match"] == 0.5
    assert result.metrics["mean_length"] == 23 / 4
    assert result.metrics["Bleu_1"] == pytest.approx(math.exp(1 - 24 / 23) * (6 + 4 + 6 + 5) / 23)
    assert "METEOR" not in result.metrics
    assert result.notes["meteor"] == "METEOR is left out: it has no Chinese"


def test_a_note_says_why_there_is_no_meteor(shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(found: object, wanted: object) -> float:
        raise NoMeteorError("METEOR is left out: it needs Java")

    monkeypatch.setattr(captioning, "meteor", missing)
    result = scored(CaptionsFromShards(shards, "json.caption_en"), *"abcd")
    assert "METEOR" not in result.metrics
    assert result.notes["meteor"] == "METEOR is left out: it needs Java"


def test_one_picture_has_no_cider(tmp_path: Path) -> None:
    shards = write_tiny_shards(tmp_path, num_samples=1)
    result = scored(CaptionsFromShards(shards, "json.caption_en"), "a red square")
    assert (result.metrics["CIDEr"], result.metrics["exact_match"]) == (0.0, 1.0)
    assert [len(part) for part in result.details["examples"].values()] == [1, 0]


@pytest.mark.parametrize(("num_examples", "best", "worst"), [(0, [], []), (1, [3], [0]), (3, [3, 1, 2], [0])])
def test_the_best_and_the_worst_are_never_the_same(
    shards: str, num_examples: int, best: list[int], worst: list[int]
) -> None:
    written = ("nothing", "green square", "a blue blue blue", "a grey square")
    result = scored(CaptionsFromShards(shards, "json.caption_en"), *written, num_examples=num_examples)
    examples = result.details["examples"]
    assert [row["position"] for row in examples["best"]] == best
    assert [row["position"] for row in examples["worst"]] == worst


def measured_once(shards: str) -> dict[str, float]:
    """The metrics on ranks of which only the first has METEOR."""
    captioning.meteor = lambda found, wanted: 0.5 if Topology.current().is_main else 0 / 0  # type: ignore[assignment]
    return dict(scored(CaptionsFromShards(shards, "json.caption_en"), *"abcd").metrics)


def test_one_rank_measures_meteor_for_all(shards: str, tmp_path: Path) -> None:
    first, second = run_gloo(measured_once, 2, tmp_path, shards)
    assert first == second
    assert first["METEOR"] == 0.5


def write_coco(folder: Path, *, pictures: int = 3) -> CaptionsFromCoco:
    """Pictures 0 to 2 of four with captions, and one without."""
    (folder / "val").mkdir()
    for number in range(pictures):
        Image.new("RGB", (20, 20), COLOURS[NAMES[number]]).save(folder / "val" / f"{number}.png")
    images = [{"id": 100 + number, "file_name": f"{number}.png"} for number in (2, 1, 0, 3)]
    captions = [
        (100, "a red square"),
        (103, "a grey square"),
        (102, "a blue square\n"),
        (100, "Red."),
        (102, " "),
    ]
    content = {
        "info": {},
        "images": [*images, {"id": 104, "file_name": "4.png"}],
        "annotations": [{"id": n, "image_id": i, "caption": c} for n, (i, c) in enumerate(captions)],
    }
    (folder / "captions.json").write_text(json.dumps(content))
    return CaptionsFromCoco(str(folder / "captions.json"), str(folder / "val"))


def test_coco_files_keep_their_order_and_count_what_is_absent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        result = scored(write_coco(tmp_path), "red", "never asked", "a blue square")
    assert caplog.messages == ["1 of 3 pictures are left out: their files are missing"]
    assert result.num_samples == 2
    assert result.metrics["exact_match"] == 1.0
    assert "perplexity" not in result.metrics
    notes = result.notes
    assert (notes["num_references"], notes["num_missing"], notes["num_left_out"]) == (3, 1, 2)
    first, second = sorted(result.details["examples"]["best"], key=lambda row: row["position"])
    assert first["references"] == ["a blue square"]
    assert second["references"] == ["a red square", "Red."]
    assert [Path(file.path).name for file in result.details["shards"][0].files] == ["2.png", "0.png"]


def test_a_picture_that_cannot_be_read_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_coco(tmp_path, pictures=4)
    result = scored(source, "a red square", "never asked", None, "a grey square")
    assert result.num_samples == 2
    assert result.metrics["exact_match"] == 1.0
    assert result.notes["num_missing"] == 1
    assert result.details["pictures"] == [1, 2]
    assert f"1 of 3 pictures are left out, the first is {tmp_path}/val/2.png" in caplog.messages
    with pytest.raises(DataError, match="none of 3 pictures can be read"):
        scored(source, None, None, None, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "captions.json is no json"),
        ("[]", "has no list 'images'; it has to be COCO's json of captions"),
        ('{"images": []}', "has no list 'annotations'"),
        (
            '{"images": [{"id": 1}], "annotations": []}',
            "entry 0 of images needs a number id and a text",
        ),
        (
            '{"images": [], "annotations": [7]}',
            "entry 0 of annotations needs a number image_id",
        ),
        (
            '{"images": [], "annotations": [{"image_id": 7, "caption": "a"}]}',
            "a caption is of image_id=7, which no image has",
        ),
        (
            '{"images": [{"id": 7, "file_name": "x.png"}], "annotations": [{"image_id": 7, "caption": "a"}]}',
            r"none of the 1 pictures with captions in .* is there, the first would be .*x\.png",
        ),
        ('{"images": [], "annotations": []}', "none of the 0 pictures with captions in .* is there$"),
    ],
)
def test_another_format_than_that_of_coco_is_refused(tmp_path: Path, content: str, message: str) -> None:
    source = write_coco(tmp_path)
    (tmp_path / "captions.json").write_text(content)
    with pytest.raises(DataError, match=message):
        source.read()


def test_what_is_not_there_is_named_by_its_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"captions\.images=nowhere: no such folder"):
        CaptionsFromCoco("nothing.json", "nowhere").read()
    with pytest.raises(ConfigError, match=r"captions\.annotations=nothing\.json: no such file"):
        CaptionsFromCoco("nothing.json", str(tmp_path)).read()
    shards = write_tiny_shards(tmp_path / "shards", num_samples=1)
    with pytest.raises(DataError, match=r"sample 000000 has no caption in \['json.text'\]; set `captions`"):
        CaptionsFromShards(shards, "json.text").read()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"language": "fr"}, "language='fr' is not one of en, zh"),
        ({"num_examples": -1}, "num_examples=-1"),
        ({"decoding": GREEDY | {"beams": 0}}, r"^decoding\.beams=0"),
        ({"decoding": GREEDY | {"beam": 2}}, r"decoding\.beam is not a key .* did you mean 'beams'"),
    ],
)
def test_a_mistake_names_its_key(changed: dict[str, Any], message: str) -> None:
    arguments = {"decoding": GREEDY, "language": "en", "num_examples": 1} | changed
    with pytest.raises(ConfigError, match=message):
        Captioning(CaptionsFromShards("x.tar", "txt"), **arguments)


def test_a_model_without_a_decoder_is_not_asked_for_captions() -> None:
    source = CaptionsFromShards("x.tar", "txt")
    suite = {
        "search": Retrieval("x.tar", "txt", relevance=None),
        "written": Captioning(source, decoding=GREEDY, language="en", num_examples=1),
    }
    check_parts(suite, ModelSpec.from_mapping(mapping_of()))
    without = ModelSpec.from_mapping(mapping_of(text_decoder=None))
    with pytest.raises(ConfigError, match=r"^suite: written take captions .* no text decoder"):
        check_parts(suite, without)
    check_parts({"search": suite["search"]}, without)
