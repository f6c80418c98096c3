"""Hard negatives beside shards."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_shards import tokenize, train_data, write_shards

from vlm.data import Source
from vlm.data.negatives import Negative, Origin, parse_negatives, write_negatives
from vlm.errors import ConfigError, DataError

ROWS = [
    [Negative("a red dog", "a blue dog", "replace_adjective"), Negative("一只狗", "一只猫", "replace_noun")],
    [],
    [Negative("x y", "y x", "shuffle")],
]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "00000.negatives.parquet"
    write_negatives(path, ["a", "b", "c"], ROWS, maker="rules", seed=3, made_by="v1")
    found = parse_negatives(path.read_bytes())
    assert [found[row] for row in range(len(found))] == [
        (key, tuple(row)) for key, row in zip("abc", ROWS, strict=True)
    ]
    assert found.origin == Origin("rules", "3", "v1")
    write_negatives(path, ["a", "b", "c"], [ROWS[0], ROWS[2], []], maker="rules", seed=3, made_by="v1")
    assert parse_negatives(path.read_bytes()).digest != found.digest


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"key": ["a"]}, "has no column negatives; it has key"),
        ({"key": ["a"], "negatives": [["a blue dog"]]}, "cannot be read"),
        (
            {"key": ["a"], "negatives": [[{"caption": "x", "negative": None, "rule": "y"}]]},
            "has nothing at some place",
        ),
    ],
)
def test_another_file_is_refused(tmp_path: Path, columns: dict, message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=message):
        parse_negatives((tmp_path / "x.parquet").read_bytes())


def test_no_parquet_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        parse_negatives(b"nothing")


SIZES = [13, 0, 30]
FIELDS = ["txt", "json.caption_en"]
RULES = ("shuffle", "swap", "replace")


def negatives_of(number: int) -> list[Negative]:
    """Of each sample's two captions: three, two, one or none."""
    captions = (f"caption {number}", f"number {number}")
    return [Negative(text, f"no {text} {rule}", rule) for text in captions for rule in RULES[: number % 4]]


def write_beside(folder: Path, *, name="negatives", seed=0, first=0) -> None:
    number = first
    folder.mkdir(exist_ok=True, parents=True)
    for shard, size in enumerate(SIZES):
        numbers = range(number, number + size)
        write_negatives(
            folder / f"{shard:05d}.{name}.parquet",
            [f"{n - first:06d}" for n in numbers],
            [negatives_of(n) for n in numbers],
            maker="rules",
            seed=seed,
            made_by=f"rules of seed {seed}",
        )
        number += size


def batches(tmp_path: Path, *, steps=10, count=2, **changes):
    source = Source(
        shards=f"{tmp_path}/{{00000..00002}}.tar",
        captions=FIELDS,
        negatives="negatives",
        negatives_per_sample=count,
    )
    data = train_data(source.shards, train=source, **changes)
    yield from data.open().loader(tokenize, start_step=0, stop_step=steps, rank=0, world_size=1)


def text_of(row) -> str:
    return bytes(row[row > 0].tolist()).decode()


def test_each_caption_has_its_own_negatives(tmp_path: Path) -> None:
    write_shards(tmp_path, SIZES)
    write_beside(tmp_path)
    drawn, captions = set(), set()
    for batch in batches(tmp_path):
        assert batch["negative_text"].shape == (8, 2, batch["text"].shape[1])
        for row in range(8):
            caption = text_of(batch["text"][row])
            number = int(caption.split()[-1])
            texts = [text_of(tokens) for tokens in batch["negative_text"][row]]
            present = batch["negative_mask"][row].tolist()
            assert present == [place < number % 4 for place in range(2)]
            allowed = [n.negative for n in negatives_of(number) if n.caption == caption]
            found = [text for text, there in zip(texts, present, strict=True) if there]
            assert found == [text for text in allowed if text in found]  # in their order, none twice
            assert all(text == "" for text, there in zip(texts, present, strict=True) if not there)
            drawn |= {text.split()[-1] for text in found}
            captions.add(caption.split()[0])
    assert drawn == set(RULES)
    assert captions == {"caption", "number"}


def test_pixels_and_captions_are_those_without_negatives(tmp_path: Path) -> None:
    write_shards(tmp_path, SIZES)
    write_beside(tmp_path)
    plain = Source(shards=f"{tmp_path}/{{00000..00002}}.tar", captions=FIELDS)
    without = train_data(plain.shards, train=plain).open()
    for batch, other in zip(
        batches(tmp_path, steps=3),
        without.loader(tokenize, start_step=0, stop_step=3, rank=0, world_size=1),
        strict=True,
    ):
        assert (batch["image"] == other["image"]).all()
        assert [text_of(row) for row in batch["text"]] == [text_of(row) for row in other["text"]]
        assert "negative_text" not in other


def test_negatives_of_other_samples_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, SIZES, first=7)
    write_beside(tmp_path)
    with pytest.raises(DataError, match=r"data\.train\.negatives=negatives: beside .* lie those of '00"):
        next(batches(tmp_path))


def test_negatives_of_two_makings_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, SIZES)
    write_beside(tmp_path)
    kept = (tmp_path / "00002.negatives.parquet").read_bytes()
    write_beside(tmp_path, seed=1)
    (tmp_path / "00002.negatives.parquet").write_bytes(kept)
    with pytest.raises(DataError, match=r"seed 0, .* and .*seed 1, .* have negatives of two makings"):
        next(batches(tmp_path))


def test_missing_negatives_are_named(tmp_path: Path) -> None:
    write_shards(tmp_path, SIZES)
    with pytest.raises(
        DataError, match=r"00000\.negatives\.parquet does not exist and 1 more are missing; make"
    ):
        next(batches(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"negatives": "a/b"}, r"data.train.negatives='a/b' is not a name as in"),
        ({"negatives": "index"}, r"data.train.negatives='index' is not a name .* and not index; a folder"),
        ({"negatives_from": "x"}, r"data.train.negatives_from=x is for hard negatives, and data.train.negat"),
        ({"negatives_per_sample": 0}, r"data.train.negatives_per_sample=0 must be at least 1"),
        (
            {"negatives": "n", "captions": None},
            r"data.train.negatives=n are of captions, and data.tr",
        ),
    ],
)
def test_contradictions_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_data("x.tar", train=Source(**{"shards": "x.tar", "captions": "txt", **changes}))


def test_a_source_may_be_without_negatives(tmp_path: Path) -> None:
    other = Source(shards=write_shards(tmp_path / "plain", [20]), captions="txt", share=0.5)
    write_shards(tmp_path, SIZES)
    write_beside(tmp_path)
    for batch in batches(tmp_path, steps=3, mix={"web": other}):
        assert batch["negative_mask"].shape == (8, 2)
        assert not batch["negative_mask"][4:].any()


def test_negatives_of_other_captions_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, SIZES)
    write_beside(tmp_path)
    other = Source(shards=f"{tmp_path}/*.tar", captions="json.caption_zh", negatives="negatives")
    with pytest.raises(DataError, match=r"but of 'caption \d+' where a caption is '第\d+号'"):
        train_data(other.shards, train=other).open()


def test_a_first_file_without_any_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, [5])
    keys = [f"{number:06d}" for number in range(5)]
    path = tmp_path / "00000.negatives.parquet"
    write_negatives(path, keys, [[]] * 5, maker="rules", seed=0, made_by="x")
    source = Source(shards=f"{tmp_path}/*.tar", captions="txt", negatives="negatives")
    with pytest.raises(DataError, match="has no negatives of any sample; make the negatives again"):
        train_data(source.shards, train=source, global_batch_size=4).open()


def test_what_is_the_caption_after_all_does_not_count(tmp_path: Path) -> None:
    write_shards(tmp_path, [5])
    rows = [
        [Negative(f" caption {n}\n", text, "x") for text in (" ", f"caption {n}", f"caption {n + 1}")]
        for n in range(5)
    ]
    keys = [f"{number:06d}" for number in range(5)]
    write_negatives(tmp_path / "00000.negatives.parquet", keys, rows, maker="x", seed=0, made_by="x")
    source = Source(shards=f"{tmp_path}/*.tar", captions="txt", negatives="negatives")
    data = train_data(source.shards, train=source, global_batch_size=4)
    (batch,) = data.open().loader(tokenize, start_step=0, stop_step=1, rank=0, world_size=1)
    assert batch["negative_mask"].tolist() == [[False, True, False, False]] * 4
