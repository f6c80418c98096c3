import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlm.data.tools.tables import open_table
from vlm.errors import ConfigError, DataError

CAPTIONS = ['a "red" cat', "红色的猫，在\n垫子上", "a, b; c | d", "", "last"]


def rows_of(table) -> list[dict]:
    return [row.values for row in table.rows()]


def csv_text(separator: str) -> str:
    lines = [f"path{separator}title{separator}id"]
    for i, caption in enumerate(CAPTIONS):
        quoted = caption.replace('"', '""')
        lines.append(f'{i}.jpg{separator}"{quoted}"{separator}{i}')
        if i == 2:
            lines.append("")  # an empty line is no row
    return "\n".join(lines) + "\n"


EXPECTED = [{"path": f"{i}.jpg", "title": caption, "id": str(i)} for i, caption in enumerate(CAPTIONS)]


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_separator_is_found_and_cells_are_as_written(tmp_path: Path, separator, start, newline) -> None:
    text = (start + csv_text(separator)).replace("\n", newline)
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode())
    table = open_table(path, separator=None)
    assert table.columns == ("path", "title", "id")
    expected = [{**row, "title": row["title"].replace("\n", newline)} for row in EXPECTED]
    assert rows_of(table) == expected


def make_tables(folder: Path) -> dict[str, Path]:
    """The same rows in every form that a table has."""
    (folder / "t.csv").write_text(csv_text(","), "utf-8")
    (folder / "t.jsonl").write_text("\n\n".join(json.dumps(row) for row in EXPECTED), "utf-8")
    columns = {name: [row[name] for row in EXPECTED] for name in ("path", "title", "id")}
    pq.write_table(pa.table(columns), folder / "t.parquet", row_group_size=2)
    (folder / "t").mkdir()
    for row in EXPECTED:
        (folder / "t" / row["path"]).write_bytes(b"")
        (folder / "t" / f"{row['id']}.txt").write_text(row["title"], "utf-8")
        (folder / "t" / f"{row['id']}.json").write_text(json.dumps({"id": row["id"]}), "utf-8")
    return {name: folder / name for name in ("t.csv", "t.jsonl", "t.parquet", "t")}


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet", "t"])
def test_a_table_is_read_from_any_row_on(tmp_path: Path, name: str) -> None:
    table = open_table(make_tables(tmp_path)[name], separator=None)
    whole = list(table.rows())
    places = list(table.places("image" if name == "t" else "path"))
    assert [place.image for place in places] == [f"{i}.jpg" for i in range(5)]
    for start in range(5):
        for count in range(1, 6 - start):
            part = table.part(number=start, place=places[start].place, count=count)
            assert list(part.rows()) == whole[start : start + count]


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_tables_hold_the_same_rows(tmp_path: Path, name: str) -> None:
    assert rows_of(open_table(make_tables(tmp_path)[name], separator=None)) == EXPECTED


def test_a_folder_is_a_table_of_its_files(tmp_path: Path) -> None:
    make_tables(tmp_path)
    (tmp_path / "t" / "sub").mkdir()
    (tmp_path / "t" / "sub" / "x.PNG").write_bytes(b"")
    (tmp_path / "t" / "notes.md").write_bytes(b"")
    table = open_table(tmp_path / "t", separator=None)
    assert table.columns == ("image", "txt", "id")
    expected = [{"image": r["path"], "txt": r["title"].strip(), "id": r["id"]} for r in EXPECTED]
    assert rows_of(table) == [*expected, {"image": "sub/x.PNG"}]


def test_tabs_without_quoting_keep_quotation_marks(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text('"open\ta.jpg\n5" wide\tb.jpg\n"\tc.jpg\n', "utf-8")
    rows = rows_of(open_table(path, separator=None))
    assert rows == [
        {"column1": '"open', "column2": "a.jpg"},
        {"column1": '5" wide', "column2": "b.jpg"},
        {"column1": '"', "column2": "c.jpg"},
    ]


def test_a_table_without_header_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("images/a.JPG,a cat\nimages/b.jpg,a dog\n")
    assert rows_of(open_table(path, separator=None))[0] == {"column1": "images/a.JPG", "column2": "a cat"}


def test_rows_that_do_not_fit_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,title\na.jpg,one,two\nb.jpg,fine\nc.jpg\n")
    problems = [row.problem for row in open_table(tmp_path / "t.csv", separator=",").rows()]
    assert problems == [f"the row has {n} cells, the table 2 columns" if n != 2 else None for n in (3, 2, 1)]
    (tmp_path / "t.jsonl").write_text('{"path": "a"}\n[1]\n{"path": \n')
    problems = [row.problem or "" for row in open_table(tmp_path / "t.jsonl", separator=None).rows()]
    assert [problem.partition(":")[0] for problem in problems] == [
        "",
        "the line is no json object",
        "the line is no json",
    ]
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "a.jpg").touch()
    (tmp_path / "t" / "a.json").write_text("[1]")
    (row,) = open_table(tmp_path / "t", separator=None).rows()
    assert "a.json is no json object" in row.problem


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "path,title\n1.jpg,a\n" * 300 + '2.jpg,"open\n3.jpg,b\n', "quotation mark without partner"),
        ("t.csv", 'path,title\n1.jpg,a\n2.jpg,"open\n3.jpg,b"x\n', "quotation mark without partner"),
        ("t.csv", "one column\nno separator\n", "separator=tab"),
        ("t.csv", "a,a\n1,2\n", "two columns of one name"),
        ("t.csv", "", "separator="),
        ("t.csv", "path,title\n1.jpg,红\n".encode("gb18030"), "not UTF-8 at byte 17.*iconv -f GB18030"),
        ("t.csv", "path,title\n".encode("utf-16"), "iconv -f UTF-16"),
        ("t.jsonl", "nothing\n", "no json object in its first lines"),
        ("t.parquet", "nothing", "no Parquet file"),
        ("t.xlsx", "nothing", "no table to judge by its name"),
    ],
)
def test_what_is_no_table_is_one_message(tmp_path: Path, name, content, message) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        list(open_table(path, separator=None).rows()), open_table(path, separator=None).columns


def test_a_folder_without_images_names_the_tables_in_it(tmp_path: Path) -> None:
    (tmp_path / "part.parquet").touch()
    with pytest.raises(DataError, match=r"holds no images .*for a table in it: input=.*part\.parquet"):
        open_table(tmp_path, separator=None)
    with pytest.raises(DataError, match="does not exist"):
        open_table(tmp_path / "none.csv", separator=None)
    (tmp_path / "t.csv").write_text("a,b\n")
    with pytest.raises(ConfigError, match="separator=',,'"):
        open_table(tmp_path / "t.csv", separator=",,")


def test_images_within_parquet_are_planned_by_the_size_of_their_column(tmp_path: Path) -> None:
    images = [{"bytes": bytes([i]) * 10_000, "path": None} for i in range(6)]
    other = pa.array([[0.5] * 8] * 6)  # a list of numbers is no text
    pq.write_table(
        pa.table({"image": images, "text": ["a cat"] * 6, "vector": other}),
        tmp_path / "t.parquet",
        row_group_size=3,
        compression="none",
        use_dictionary=False,
    )
    table = open_table(tmp_path / "t.parquet", separator=None)
    assert table.columns == ("image", "text")
    assert [place.image for place in table.places("image")] == pytest.approx([10_000] * 6, rel=0.1)
    assert rows_of(table)[4] == {"image": images[4], "text": "a cat"}
