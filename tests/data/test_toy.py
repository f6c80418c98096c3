import io
import json
import math
import subprocess
import sys
import tarfile
from collections import Counter
from functools import lru_cache
from itertools import combinations, permutations
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlm.data.negatives import parse_negatives
from vlm.data.sidecar import sidecar_path
from vlm.data.toy import write_toy
from vlm.data.toy.captions import (
    CHINESE,
    LANGUAGES,
    Statement,
    lies,
    replaced,
    swapped,
    true_statement,
    wordings,
)
from vlm.data.toy.drawing import draw_scene
from vlm.data.toy.scenes import (
    ATTRIBUTES,
    HELD_OUT_KINDS,
    KINDS,
    SEEN_KINDS,
    Kind,
    Scene,
    Thing,
    choice_scene,
    training_scene,
)
from vlm.errors import DataError

SMALL = {
    "num_train": 1100,
    "num_test": 144,
    "num_held_out": 48,
    "num_choice": 300,
    "image_size": 32,
    "seed": 0,
}
SHARES = (0.3, 0.4, 0.3)


def kind_of(thing: dict[str, Any]) -> tuple[str, str, str]:
    return thing["colour"], thing["texture"], thing["shape"]


def read(folder: Path) -> list[dict[str, Any]]:
    """Every sample of a folder of shards: extension -> bytes, with the json member parsed."""
    found: dict[str, dict[str, Any]] = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for info in tar:
                key, extension = info.name.split(".")
                content = tar.extractfile(info).read()
                found.setdefault(key, {"key": key})[extension] = (
                    json.loads(content) if extension == "json" else content
                )
    return list(found.values())


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toy") / "scenes"
    write_toy(out, **SMALL, progress=False)
    return out


@pytest.fixture(scope="module")
def choice(toy: Path) -> list[dict[str, Any]]:
    return [sample["json"] for sample in read(toy / "choice")]


# --- the split -------------------------------------------------------------------------------------------


def test_a_quarter_of_the_kinds_is_held_out_and_every_pair_of_values_is_seen() -> None:
    assert len(HELD_OUT_KINDS) * 4 == len(KINDS) == len(set(KINDS)) >= 64
    for first, second in combinations(("colour", "texture", "shape"), 2):
        seen = {(getattr(kind, first), getattr(kind, second)) for kind in SEEN_KINDS}
        assert len(seen) == len(ATTRIBUTES[first]) * len(ATTRIBUTES[second])


def test_no_training_object_has_a_held_out_kind_and_every_seen_kind_occurs(toy: Path) -> None:
    held_out = {(kind.colour, kind.texture, kind.shape) for kind in HELD_OUT_KINDS}
    counts = Counter(kind_of(thing) for sample in read(toy / "train") for thing in sample["json"]["objects"])
    assert not held_out & counts.keys()
    assert len(counts) == len(SEEN_KINDS)


@pytest.mark.parametrize("name", ["test", "held_out"])
def test_class_sets_show_one_object_of_the_class_they_name(toy: Path, name: str) -> None:
    classes = json.loads((toy / "classes.json").read_text("utf-8"))
    samples = read(toy / name)
    expected = {c["id"] for c in classes if c["held_out"] == (name == "held_out")}
    assert Counter(int(sample["cls"]) for sample in samples) == Counter(
        dict.fromkeys(expected, len(samples) // len(expected))
    )
    for sample in samples:
        (thing,) = sample["json"]["objects"]
        label = classes[int(sample["cls"])]
        assert label["id"] == sample["json"]["class_id"] == int(sample["cls"])
        assert label["en"] == sample["json"]["class"] == " ".join(kind_of(thing))
        assert label["zh"] == "".join(CHINESE[value] for value in kind_of(thing))


def test_class_names_are_distinct_in_both_languages(toy: Path) -> None:
    classes = json.loads((toy / "classes.json").read_text("utf-8"))
    assert all(len({c[language] for c in classes}) == len(classes) >= 64 for language in LANGUAGES)


# --- pictures --------------------------------------------------------------------------------------------


def test_training_images_have_one_to_three_objects_and_a_relation_to_the_first(toy: Path) -> None:
    samples = [sample["json"] for sample in read(toy / "train")]
    assert {len(sample["objects"]) for sample in samples} == {1, 2, 3}
    for sample in samples:
        first, *others = sample["objects"]
        assert len(sample["relations"]) == len(others)
        for relation, other in zip(sample["relations"], others, strict=True):
            assert geometric_relation(first, other) == relation


def geometric_relation(a: dict[str, Any], b: dict[str, Any]) -> str:
    """One word, or two at once, which no caption says, where they stand across from each other."""
    dx, dy = (b["centre"][axis] - a["centre"][axis] for axis in (0, 1))
    if max(abs(dx), abs(dy)) <= 4 * min(abs(dx), abs(dy)):
        return f"{'left' if dx > 0 else 'right'} {'above' if dy > 0 else 'below'}"
    if abs(dx) > abs(dy):
        return "left" if dx > 0 else "right"
    return "above" if dy > 0 else "below"


def test_ink_lies_where_the_scene_says() -> None:
    rng = Random(1)
    for _ in range(50):
        scene = training_scene(rng, shares=SHARES)
        ink = np.asarray(draw_scene(scene, image_size=64, rng=rng)).astype(int).min(axis=2) < 170
        assert ink.any()
        ys, xs = np.nonzero(ink)
        places = np.array(scene.centres) * 64
        distance = np.abs(np.stack([xs, ys], 1)[:, None] - places[None]).max(2)
        assert (distance.min(1) <= 64 * 0.46 / 2 + 1).all()
        assert set(distance.argmin(1)) == set(range(len(scene.things)))


def test_no_two_kinds_or_sizes_draw_alike() -> None:
    things = [Thing(kind=kind, size=size) for kind in KINDS for size in ATTRIBUTES["size"]]
    drawn = []
    for thing in things:
        scene = Scene(things=(thing,), relations=(), centres=((0.5, 0.5),))
        drawn.append(np.asarray(draw_scene(scene, image_size=32, rng=Random(0)), dtype=np.float32).ravel())
    flat = np.stack(drawn)
    squares = (flat**2).sum(1)
    distance = squares[:, None] + squares[None] - 2 * flat @ flat.T
    np.fill_diagonal(distance, np.inf)
    assert math.sqrt(distance.min()) > 100  # root of summed squares over 3·32·32 bytes


def test_image_has_the_size_asked_for(toy: Path) -> None:
    for sample in read(toy / "test")[:3]:
        image = Image.open(io.BytesIO(sample["png"]))
        assert (image.size, image.mode) == ((32, 32), "RGB")


# --- captions --------------------------------------------------------------------------------------------


def test_captions_are_as_a_person_would_write_them() -> None:
    red = Thing(kind=Kind(colour="red", texture="striped", shape="circle"), size="small")
    blue = Thing(kind=Kind(colour="blue", texture="hollow", shape="star"), size="large")
    statement = Statement(things=(red, blue), relations=("left",), sizes=True)
    assert (
        wordings(statement, "en")[0] == "a small red striped circle to the left of a large blue hollow star"
    )
    assert wordings(statement, "zh")[0] == "红色条纹小圆形在蓝色空心大五角星的左边"
    short = Statement(things=(red, blue), relations=("left",), sizes=False)
    assert wordings(short, "en")[2] == "to the left of a blue hollow star there is a red striped circle"
    assert wordings(short, "zh")[2] == "蓝色空心五角星的左边有一个红色条纹圆形"


def test_training_captions_are_made_of_the_words_of_their_objects(toy: Path) -> None:
    values = {value for group in ATTRIBUTES.values() for value in group}
    for sample in read(toy / "train"):
        fields = sample["json"]
        said = Counter(word for word in fields["caption_en"].split() if word in values)
        named = [
            thing | {"size": ""} if not said.keys() & {"small", "large"} else thing
            for thing in fields["objects"]
        ]
        assert said == Counter(thing[a] for thing in named for a in ATTRIBUTES if thing[a])
        assert sum(fields["caption_zh"].count(CHINESE[thing["shape"]]) for thing in named) >= len(named)
        assert sample["txt"].decode() == fields["caption_en"]


def test_captions_differ_in_length(toy: Path) -> None:
    samples = [sample["json"] for sample in read(toy / "train")]
    for language in LANGUAGES:
        assert len({len(sample[f"caption_{language}"]) for sample in samples}) > 10


# --- captions that lie -----------------------------------------------------------------------------------


def holds(statement: Statement, scene: Scene) -> bool:
    """Whether some assignment of the statement's things to the scene's makes every word true."""
    seen = [{"centre": centre} for centre in scene.centres]
    for chosen in permutations(range(len(scene.things)), len(statement.things)):
        things = [scene.things[i] for i in chosen]
        same = all(
            said.kind == real.kind and (said.size == real.size or not statement.sizes)
            for said, real in zip(statement.things, things, strict=True)
        )
        relations = tuple(geometric_relation(seen[chosen[0]], seen[i]) for i in chosen[1:])
        if same and relations == statement.relations:
            return True
    return False


def test_true_captions_hold_and_lies_do_not() -> None:
    rng = Random(2)
    for _ in range(300):
        scene = choice_scene(rng)
        truth = true_statement(scene, sizes=True)
        wrong = lies(truth, rng)
        assert {f"replace_{attribute}" for attribute in ATTRIBUTES} < wrong.keys()
        assert holds(truth, scene)
        assert not any(holds(lie, scene) for lie in wrong.values())
        assert not any(thing.kind.held_out for lie in wrong.values() for thing in lie.things)


def test_lies_about_held_out_kinds_name_held_out_kinds() -> None:
    rng = Random(2)
    told = Counter()
    for _ in range(300):
        scene = choice_scene(rng, kinds=HELD_OUT_KINDS)
        wrong = lies(true_statement(scene, sizes=True), rng)
        told.update(wrong.keys())
        assert not any(holds(lie, scene) for lie in wrong.values())
        assert all(thing.kind.held_out for lie in wrong.values() for thing in lie.things)
    assert told["swap_relation"] == 300
    assert min(told[rule] for rule in ("replace_colour", "replace_shape", "swap_colour", "swap_size")) > 20


def test_training_captions_hold_and_the_lies_about_them_do_not() -> None:
    rng = Random(3)
    for _ in range(300):
        scene = training_scene(rng, shares=SHARES)
        truth = true_statement(scene, sizes=rng.random() < 0.5)
        wrong = lies(truth, rng)
        assert holds(truth, scene)
        assert wrong
        assert not any(holds(lie, scene) for lie in wrong.values())
        assert not any(thing.kind.held_out for lie in wrong.values() for thing in lie.things)
        assert any(rule.startswith("swap") for rule in wrong) == (len(scene.things) > 1)


def test_negatives_lie_beside_the_training_shards(toy: Path) -> None:
    samples = read(toy / "train")
    files = [sidecar_path(str(shard), "negatives") for shard in sorted((toy / "train").glob("*.tar"))]
    found = [row for file in files for row in parse_negatives(Path(file).read_bytes())]
    assert [row.key for row in found] == [sample["key"] for sample in samples]
    for row, sample in zip(found, samples, strict=True):
        captions = {sample["json"][f"caption_{language}"] for language in LANGUAGES}
        assert {negative.caption for negative in row.negatives} == captions
        assert not captions & {negative.negative for negative in row.negatives}


def test_a_swap_has_exactly_the_words_and_characters_of_the_truth(choice: list[dict[str, Any]]) -> None:
    for sample in choice:
        assert sample["swapped_en"]
        assert len(sample["swapped_en"]) == len(sample["swapped_zh"]) == len(sample["swapped"])
        for swap in sample["swapped_en"]:
            assert swap != sample["caption_en"]
            assert Counter(swap.split()) == Counter(sample["caption_en"].split())
        for swap in sample["swapped_zh"]:
            assert swap != sample["caption_zh"]
            assert Counter(swap) == Counter(sample["caption_zh"])


def test_a_replacement_changes_one_word(choice: list[dict[str, Any]]) -> None:
    for sample in choice:
        assert sample["replaced"] == list(ATTRIBUTES)
        truth = sample["caption_en"].split()
        for attribute, lie in zip(sample["replaced"], sample["replaced_en"], strict=True):
            changed = [pair for pair in zip(truth, lie.split(), strict=True) if pair[0] != pair[1]]
            assert len(changed) == 1
            assert set(changed[0]) <= set(ATTRIBUTES[attribute])
        for lie, lie_zh in zip(sample["replaced_en"], sample["replaced_zh"], strict=True):
            old, new = next(p for p in zip(truth, lie.split(), strict=True) if p[0] != p[1])
            removed = Counter(sample["caption_zh"]) - Counter(lie_zh)
            assert removed == Counter(CHINESE[old]) - Counter(CHINESE[new])


def test_every_kind_of_lie_is_told(choice: list[dict[str, Any]]) -> None:
    told = Counter(attribute for sample in choice for attribute in sample["swapped"])
    assert told.keys() == {*ATTRIBUTES, "relation"}
    assert told["relation"] == len(choice)
    assert min(told.values()) > len(choice) / 4


@lru_cache(maxsize=64)
def _word_statistics(caption: str) -> set[str]:
    words = caption.split()
    return {f"{i} {word}" for i, word in enumerate(words)} | {" ".join(p) for p in combinations(words, 2)}


@pytest.mark.parametrize("kind", ["replaced", "swapped"])
def test_reading_alone_does_not_tell_a_lie_from_the_truth(kind: str) -> None:
    # A text-only judge: naive Bayes over words with their places and ordered pairs of words, fitted on pairs
    # of other scenes. Its standard error over 2,000 scenes of four or so dependent pairs is below 1.2 %.
    rng = Random(4)
    pairs = []
    for _ in range(4000):
        truth = true_statement(choice_scene(rng), sizes=True)
        names = ATTRIBUTES if kind == "replaced" else (*ATTRIBUTES, "relation")
        wrong = [replaced(truth, a, rng) if kind == "replaced" else swapped(truth, a) for a in names]
        pairs.append((wordings(truth, "en")[0], [wordings(lie, "en")[0] for lie in wrong if lie is not None]))
    counts = {True: Counter[str](), False: Counter[str]()}
    for truth, wrong in pairs[:2000]:
        for lie in wrong:
            counts[True].update(_word_statistics(truth) - _word_statistics(lie))
            counts[False].update(_word_statistics(lie) - _word_statistics(truth))

    def score(only: set[str]) -> float:
        return sum(math.log((counts[True][f] + 1) / (counts[False][f] + 1)) for f in only)

    right = [
        score(_word_statistics(truth) - _word_statistics(lie))
        > score(_word_statistics(lie) - _word_statistics(truth))
        for truth, wrong in pairs[2000:]
        for lie in wrong
    ]
    assert abs(sum(right) / len(right) - 0.5) < 0.04


# --- files -----------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_process_with_another_hash_seed_writes_the_same_bytes(toy: Path, tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from vlm.data.negatives import parse_negatives
from vlm.data.sidecar import sidecar_path
from vlm.data.toy import write_toy
write_toy(Path("scenes"), **{SMALL}, progress=False)
"""
    environment = {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert contents(tmp_path / "scenes") == contents(toy)


def test_a_sample_does_not_depend_on_how_many_there_are(toy: Path, tmp_path: Path) -> None:
    write_toy(tmp_path / "few", **SMALL | {"num_train": 5, "num_choice": 3}, progress=False)
    for name, count in (("train", 5), ("choice", 3)):
        assert read(tmp_path / "few" / name) == read(toy / name)[:count]


def test_another_seed_gives_other_scenes(toy: Path, tmp_path: Path) -> None:
    write_toy(tmp_path / "other", **SMALL | {"num_train": 5, "seed": 1}, progress=False)
    pairs = zip(read(tmp_path / "other" / "train"), read(toy / "train"), strict=False)
    assert all(other["png"] != first["png"] for other, first in pairs)


def test_the_same_settings_leave_the_folder_as_it_is(toy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in toy.rglob("*")}
    write_toy(toy, **SMALL, progress=False)
    assert before == {path: path.stat().st_mtime_ns for path in toy.rglob("*")}


def test_other_settings_for_a_folder_are_refused_by_name(toy: Path) -> None:
    with pytest.raises(DataError, match=r"num_train=1100 \(asked: 7\)"):
        write_toy(toy, **SMALL | {"num_train": 7}, progress=False)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(DataError, match=r"no toy\.json"):
        write_toy(tmp_path, **SMALL, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_an_interrupted_run_leaves_nothing_and_an_empty_folder_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "scenes"
    out.mkdir()
    few = SMALL | {"num_train": 3, "num_test": 1, "num_held_out": 1, "num_choice": 1}
    with monkeypatch.context() as patch:
        patch.setattr("vlm.data.toy.shards._classes", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_toy(out, **few, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"scenes", ".scenes.lock"}
    assert not list(out.iterdir())
    (tmp_path / ".scenes.partial" / "train").mkdir(parents=True)  # of a process that was killed
    write_toy(out, **few, progress=False)
    assert len(read(out / "train")) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"scenes", ".scenes.lock"}


@pytest.mark.parametrize(("key", "value"), [("num_test", 0), ("image_size", 8)])
def test_settings_that_make_no_data_set_are_refused_by_name(tmp_path: Path, key: str, value: int) -> None:
    with pytest.raises(DataError, match=f"{key}={value}"):
        write_toy(tmp_path / "scenes", **SMALL | {key: value}, progress=False)
