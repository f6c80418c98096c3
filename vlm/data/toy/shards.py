"""The toy data set on disk: training shards, three evaluation sets, classes and templates."""

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from vlm.data.negatives import Negative, write_negatives
from vlm.data.sidecar import sidecar_path
from vlm.data.toy.captions import (
    CLASS_TEMPLATES,
    LANGUAGES,
    Language,
    Statement,
    class_name,
    lies,
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
    choice_scene,
    single_scene,
    training_scene,
)
from vlm.data.writer import ShardWriter
from vlm.errors import DataError
from vlm.files import DRAFT, writing

_FORMAT = 2
_SCENE_SHARES = (0.5, 0.4, 0.1)
"""Training images with one, two and three things."""
_SHARD_SAMPLES = 1000

Fields = dict[str, Any]
Sampler = Callable[[int, Random], tuple[Scene, Fields]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToySettings:
    """What the bytes of the data set depend on; stored beside them as `toy.json`."""

    num_train: int
    num_test: int
    num_held_out: int
    num_choice: int
    image_size: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("num_train", "num_test", "num_held_out", "num_choice"):
            if getattr(self, name) < 1:
                raise DataError(f"{name}={getattr(self, name)} must be at least 1")
        if self.image_size < 16:
            raise DataError(f"image_size={self.image_size} is too small to show a texture; use 16 or more")


def write_toy(
    out: Path,
    *,
    num_train: int,
    num_test: int,
    num_held_out: int,
    num_choice: int,
    image_size: int,
    seed: int,
    progress: bool,
) -> None:
    """Write the toy data set, whole or not at all; return at once where the same already lies.

    `train` has scenes of one to three things of seen kinds, and beside its shards hard negatives of the
    captions. `test` (seen kinds) and `held_out` (kinds that no training image has) show one thing each, to be
    classified among all kinds in `classes.json`. `choice` and `choice_held_out` show two things, with lies
    about them: `replaced_<language>`, `swapped_<language>` of the json member.

    Sample i of a set depends on `seed` and i alone, not on the number of samples.

    Args:
        image_size: edge in pixels.

    Raises:
        DataError: when the folder holds something else, or the same with other settings.
        OutputError: it cannot be written.
    """
    settings = ToySettings(
        num_train=num_train,
        num_test=num_test,
        num_held_out=num_held_out,
        num_choice=num_choice,
        image_size=image_size,
        seed=seed,
    )
    if _is_written(out, settings):
        return
    draft = out.with_name(f".{out.name}{DRAFT}")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(out.with_name(f".{out.name}.lock")):
            if _is_written(out, settings):  # another process was faster
                return
            shutil.rmtree(draft, ignore_errors=True)  # of one that was killed
            try:
                _write_all(draft, settings, progress=progress)
                os.replace(draft, out)
            finally:
                shutil.rmtree(draft, ignore_errors=True)


def _is_written(out: Path, settings: ToySettings) -> bool:
    """Whether these settings' data lie there; False for a missing or empty folder."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    record = out / "toy.json"
    if not record.is_file():
        raise DataError(f"{out} is not empty and has no toy.json; name another folder with out=…")
    found = json.loads(record.read_text("utf-8"))
    wanted = _record(settings)
    differing = [
        f"{key}={found.get(key)} (asked: {wanted[key]})" for key in wanted if found.get(key) != wanted[key]
    ]
    if differing:
        raise DataError(
            f"{out} holds toy scenes made with {', '.join(differing)}; name another folder or remove it"
        )
    return True


def _record(settings: ToySettings) -> dict[str, int]:
    return {"format": _FORMAT, **asdict(settings)}


def _write_all(folder: Path, settings: ToySettings, *, progress: bool) -> None:
    samplers: Mapping[str, tuple[int, Sampler]] = {
        "train": (settings.num_train, _training_sample),
        "test": (settings.num_test, partial(_class_sample, kinds=SEEN_KINDS)),
        "held_out": (settings.num_held_out, partial(_class_sample, kinds=HELD_OUT_KINDS)),
        "choice": (settings.num_choice, partial(_choice_sample, kinds=SEEN_KINDS)),
        "choice_held_out": (settings.num_choice, partial(_choice_sample, kinds=HELD_OUT_KINDS)),
    }
    total = sum(count for count, _ in samplers.values())
    hidden = None if progress else True  # None: where there is no terminal
    with tqdm(total=total, desc="drawing toy scenes", unit="image", disable=hidden) as bar:
        for name, (count, sampler) in samplers.items():
            with ShardWriter(folder / name, prefix="", max_samples=_SHARD_SAMPLES) as writer:
                for key, members in _samples(name, count, sampler, settings):
                    writer.write(key, members)
                    bar.update()
    _write_negatives(folder / "train", settings)
    _write_json(folder / "classes.json", _classes())
    for language in LANGUAGES:
        templates = "\n".join(CLASS_TEMPLATES[language]) + "\n"
        (folder / f"templates_{language}.txt").write_text(templates, "utf-8")
    _write_json(folder / "toy.json", _record(settings))


def _write_negatives(folder: Path, settings: ToySettings) -> None:
    """Beside the shards of `train`, for each sample."""
    for shard, first in enumerate(range(0, settings.num_train, _SHARD_SAMPLES)):
        numbers = range(first, min(first + _SHARD_SAMPLES, settings.num_train))
        write_negatives(
            Path(sidecar_path(str(folder / f"{shard:05d}.tar"), "negatives")),
            [_key("train", i) for i in numbers],
            [_training_negatives(settings, i) for i in numbers],
            maker="toy scenes",
            seed=settings.seed,
            made_by=f"toy scenes, format {_FORMAT}",
        )


def _key(name: str, i: int) -> str:
    return f"{name}_{i:06d}"


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", "utf-8")


def _classes() -> list[Fields]:
    return [
        {"id": i, "en": class_name(kind, "en"), "zh": class_name(kind, "zh"), "held_out": kind.held_out}
        for i, kind in enumerate(KINDS)
    ]


def _samples(
    name: str, count: int, sampler: Sampler, settings: ToySettings
) -> Iterator[tuple[str, dict[str, bytes]]]:
    for i in range(count):
        # Random hashes a string seed with SHA-512: the same on every machine, unlike hash().
        rng = Random(f"{settings.seed}/{name}/{i}")
        scene, fields = sampler(i, rng)
        picture = io.BytesIO()
        draw_scene(scene, image_size=settings.image_size, rng=rng).save(picture, "png")
        yield _key(name, i), _members(scene, fields, picture.getvalue())


def _members(scene: Scene, fields: Fields, picture: bytes) -> dict[str, bytes]:
    members = {"png": picture, "txt": fields["caption_en"].encode()}
    if len(scene.things) == 1:
        kind = scene.things[0].kind
        class_id = KINDS.index(kind)
        fields = {"class": class_name(kind, "en"), "class_id": class_id, **fields}
        members["cls"] = str(class_id).encode()
    fields = {**fields, "objects": _objects(scene), "relations": list(scene.relations)}
    members["json"] = json.dumps(fields, ensure_ascii=False).encode()
    return members


def _objects(scene: Scene) -> list[Fields]:
    return [
        {
            **{attribute: thing.value(attribute) for attribute in ATTRIBUTES},
            "centre": [round(coordinate, 3) for coordinate in centre],
        }
        for thing, centre in zip(scene.things, scene.centres, strict=True)
    ]


def _true_captions(scene: Scene, rng: Random) -> tuple[Statement, Fields]:
    """A true caption in each language, with or without sizes, and what they say."""
    statement = true_statement(scene, sizes=rng.random() < 0.5)
    chosen = {f"caption_{language}": rng.choice(wordings(statement, language)) for language in LANGUAGES}
    return statement, chosen


def _training_sample(_: int, rng: Random) -> tuple[Scene, Fields]:
    scene = training_scene(rng, shares=_SCENE_SHARES)
    return scene, _true_captions(scene, rng)[1]


def _training_negatives(settings: ToySettings, i: int) -> list[Negative]:
    """Lies about training sample i, in the wording of each of its captions."""
    rng = Random(f"{settings.seed}/train/{i}")
    statement, captions = _true_captions(training_scene(rng, shares=_SCENE_SHARES), rng)
    wrong = lies(statement, Random(f"{settings.seed}/train/{i}/negatives"))
    found = []
    for language in LANGUAGES:
        caption = captions[f"caption_{language}"]
        wording = wordings(statement, language).index(caption)
        found += [Negative(caption, wordings(lie, language)[wording], rule) for rule, lie in wrong.items()]
    return found


def _class_sample(i: int, rng: Random, *, kinds: tuple[Kind, ...]) -> tuple[Scene, Fields]:
    scene = single_scene(kinds[i % len(kinds)], rng)
    return scene, _true_captions(scene, rng)[1]


def _choice_sample(_: int, rng: Random, *, kinds: tuple[Kind, ...]) -> tuple[Scene, Fields]:
    """A scene, a true caption, and lies in the same wording, one for each attribute that allows it."""
    scene = choice_scene(rng, kinds=kinds)
    truth = true_statement(scene, sizes=True)
    wrong = lies(truth, rng)
    kinds_of_lies = {
        name: {rule.removeprefix(prefix): lie for rule, lie in wrong.items() if rule.startswith(prefix)}
        for name, prefix in (("replaced", "replace_"), ("swapped", "swap_"))
    }
    fields: Fields = {name: list(some) for name, some in kinds_of_lies.items()}
    for language in LANGUAGES:
        wording = rng.randrange(len(wordings(truth, language)))
        fields[f"caption_{language}"] = wordings(truth, language)[wording]
        for name, some in kinds_of_lies.items():
            fields[f"{name}_{language}"] = _worded(some, language, wording)
    return scene, fields


def _worded(statements: Mapping[str, Statement], language: Language, wording: int) -> list[str]:
    return [wordings(statement, language)[wording] for statement in statements.values()]
