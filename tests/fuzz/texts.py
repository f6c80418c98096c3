"""Damaged json and captions in shards, and the files that evaluations read."""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

from fuzz import damage, world
from fuzz.case import Case
from fuzz.commands import CHECK, EVALUATE, PACK_CSV, PACK_JSONL, PACK_PARQUET, TRAIN

NUMBER = world.SHARD_SIZE + 5


def cases() -> Iterator[Case]:
    for what, changed in _MEMBERS.items():
        yield Case("json and captions", what, _in_shard(changed), (TRAIN, CHECK), world.shard_of(NUMBER))
    yield Case(
        "json and captions",
        "no json that can be parsed in any sample",
        _all_broken,
        (TRAIN, CHECK),
        "shards/",
    )
    for what, (name, text) in _EVALUATION.items():
        yield Case("json and captions", what, _written(name, text), (EVALUATE,), name)
    for what, number in (
        ("evaluation: a label that no class has", 99),
        ("evaluation: a label of 5,000 digits", "9" * 5000),
    ):
        yield Case("json and captions", what, _label(number), (EVALUATE,), "000005")
    for name, command in (
        ("photos.csv", PACK_CSV),
        ("photos.jsonl", PACK_JSONL),
        ("photos.parquet", PACK_PARQUET),
    ):
        for what, change in _TABLES.items():
            yield Case("table", f"{name}: {what}", _table(name, change), (command,), name)
    yield Case("table", "photos.csv: a quote that nobody closes", _open_quote, (PACK_CSV,), "photos.csv")
    yield Case("table", "photos.csv: images outside of the folder", _outside, (PACK_CSV,), "photos.csv")
    yield Case("table", "photos.jsonl: a line nested 100,000 deep", _deep_line, (PACK_JSONL,), "photos.jsonl")
    yield Case(
        "table",
        "photos.jsonl: lists, numbers and null in place of texts",
        _types,
        (PACK_JSONL,),
        "photos.jsonl",
    )


def _in_shard(changed: dict[str, bytes | None]):
    def do(folder: Path, rng: Random) -> None:
        members = {**world.members(NUMBER), **changed}
        world.change_sample(
            folder, NUMBER, {name: data for name, data in members.items() if data is not None}
        )
        world.drop_index(folder)

    return do


def _all_broken(folder: Path, rng: Random) -> None:
    world.drop_index(folder)
    for shard in range(world.NUM_SHARDS):
        first = shard * world.SHARD_SIZE
        changed = {n: {**world.members(n), "json": b"{"} for n in range(first, first + world.SHARD_SIZE)}
        world.write_shard(folder / world.shard_of(first), first, changed)


def _written(name: str, text: bytes):
    def do(folder: Path, rng: Random) -> None:
        (folder / name).write_bytes(text)

    return do


def _label(label: object):
    def do(folder: Path, rng: Random) -> None:
        members = {**world.members(5), "cls": str(label).encode()}
        world.write_shard(folder / "eval/00000.tar", 0, {5: members})

    return do


def _table(name: str, change: damage.Bytes):
    def do(folder: Path, rng: Random) -> None:
        if name.endswith("parquet"):
            import pyarrow as pa
            import pyarrow.parquet as pq

            paths = [f"pictures/{number}.png" for number in range(12)]
            titles = [f"number {number}" for number in range(12)]
            pq.write_table(pa.table({"filepath": paths, "title": titles}), folder / name)
        damage.rewrite(folder / name, change, rng)

    return do


def _open_quote(folder: Path, rng: Random) -> None:
    damage.replace(folder / "photos.csv", ",number 3", ',"number 3')


def _outside(folder: Path, rng: Random) -> None:
    damage.replace(folder / "photos.csv", "pictures/3.png", "../../../../etc/passwd")


def _deep_line(folder: Path, rng: Random) -> None:
    with (folder / "photos.jsonl").open("a") as file:
        file.write("[" * 100_000 + "\n")


def _types(folder: Path, rng: Random) -> None:
    lines = (folder / "photos.jsonl").read_text().splitlines()
    lines[2] = json.dumps({"filepath": ["pictures/2.png"], "title": "x"})
    lines[3] = json.dumps({"filepath": 3, "title": "x"})
    lines[4] = json.dumps({"filepath": "pictures/4.png", "title": None})
    lines[5] = json.dumps({"filepath": "pictures/5.png\0", "title": "x"})
    (folder / "photos.jsonl").write_text("\n".join(lines))


def _binary_line(data: bytes, rng: Random) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join([*lines[:4], rng.randbytes(60).replace(b"\n", b"?") + b"\n", *lines[4:]])


_TABLES: dict[str, damage.Bytes] = {
    "cut off": damage.cut,
    "random bytes": damage.garbage,
    "empty": damage.empty,
    "zeros": damage.zeros,
    "UTF-16": lambda data, rng: data.decode("utf-8", "replace").encode("utf-16"),
    "a line of random bytes": _binary_line,
}

_MEMBERS: dict[str, dict[str, bytes | None]] = {
    "json that is no UTF-8": {"json": '{"caption_zh": "第"}'.encode("gb18030")},
    "json behind a byte order mark": {"json": b"\xef\xbb\xbf{}"},
    "json, cut off": {"json": b'{"caption_zh": "'},
    "json, empty": {"json": b""},
    "json nested 100,000 deep": {"json": b"[" * 100_000 + b"]" * 100_000},
    "json of objects nested 100,000 deep": {"json": b'{"a":' * 100_000 + b"1" + b"}" * 100_000},
    "json with a number of 100,000 digits": {"json": b'{"id": ' + b"9" * 100_000 + b"}"},
    "json with NaN and Infinity": {"json": b'{"caption_zh": NaN, "id": -Infinity}'},
    "json that is a list": {"json": b'["caption_zh"]'},
    "json that is a number": {"json": b"7"},
    "json whose caption is a number": {"json": b'{"caption_zh": 7}'},
    "json whose caption is a list of lists": {
        "json": b'{"caption_zh": [["a"], {"b": 1}, null]}',
        "txt": None,
    },
    "json with half of a character": {"json": b'{"caption_zh": "\\ud83d"}', "txt": None},
    "json with a null byte in the caption": {"json": b'{"caption_zh": "a\\u0000b"}', "txt": None},
    "json with one key twice": {"json": '{"caption_zh": "一", "caption_zh": 2}'.encode()},
    "text that is no UTF-8": {"txt": b"\xff\xfe\xfa", "json": None},
    "text of spaces": {"txt": b" \n\t ", "json": None},
    "text of 250 kB": {"txt": b"long " * 50_000},
    "text of terminal codes": {"txt": b"\x1b[2J\x1b]0;x\x07 red"},
    "text of unassigned and right-to-left characters": {"txt": "\u202eabc\U000e0001\ufffe".encode()},
    "neither text nor json": {"txt": None, "json": None},
    "a label that is no number": {"cls": b"three"},
    "a label of 5,000 digits": {"cls": b"9" * 5000},
    "members of pickle and yaml that would run code": {
        "pkl": b"cbuiltins\nopen\n(Vit_ran\nVw\ntR.",
        "pyd": b"cbuiltins\nopen\n(Vit_ran\nVw\ntR.",
        "yaml": b"!!python/object/apply:builtins.open [it_ran, w]",
    },
}

_EVALUATION = {
    "class names: no json": ("eval/classes.json", b"{"),
    "class names: no UTF-8": ("eval/classes.json", b'["\xff"]'),
    "class names: an object in place of a list": ("eval/classes.json", b'{"id": 1, "name": "red"}'),
    "class names: numbers in place of objects": ("eval/classes.json", b"[1, 2, 3]"),
    "class names: a name that is a number": ("eval/classes.json", b'[{"id": 0, "name": 7}]'),
    "class names: a label that is a list": ("eval/classes.json", b'[{"id": [0], "name": "red"}]'),
    "class names: an empty list": ("eval/classes.json", b"[]"),
    "class names: nested 100,000 deep": ("eval/classes.json", b"[" * 100_000),
    "templates: no UTF-8": ("eval/templates.txt", b"\xff\xfe{c}"),
    "templates: empty": ("eval/templates.txt", b""),
    "templates: no place for the name": ("eval/templates.txt", b"a photo\n"),
    "templates: a format that reads attributes": ("eval/templates.txt", b"{c.__class__} {0}\n"),
}
