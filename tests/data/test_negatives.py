"""Hard negatives beside shards."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlm.data.negatives import Negative, Origin, parse_negatives, write_negatives

ROWS = [
    [Negative("a red dog", "a blue dog", "replace_adjective"), Negative("一只狗", "一只猫", "replace_noun")],
    [],
    [Negative("x y", "y x", "shuffle")],
]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "00000.negatives.parquet"
    write_negatives(path, ["a", "b", "c"], ROWS, maker="rules", seed=3, made_by="v1")
    found = parse_negatives(path.read_bytes())
    assert found.keys == ["a", "b", "c"]
    assert [list(row) for row in found.rows] == ROWS
    assert found.origin == Origin("rules", "3", "v1")
    write_negatives(path, ["a", "b", "c"], [ROWS[0], ROWS[2], []], maker="rules", seed=3, made_by="v1")
    assert parse_negatives(path.read_bytes()).digest != found.digest


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"key": ["a"]}, "has no column negatives; it has key"),
        ({"key": ["a"], "negatives": [["a blue dog"]]}, "not caption, negative, rule"),
        ({"key": ["a"], "negatives": [[{"caption": "x", "negative": None, "rule": "y"}]]}, "not caption"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, columns: dict, message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=message):
        parse_negatives((tmp_path / "x.parquet").read_bytes())


def test_no_parquet_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        parse_negatives(b"nothing")
