"""What a sidecar holds, who may have written it, and what is said of one that is wrong."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlm.data.labels import Origin, parse_sidecar, write_sidecar
from vlm.data.sidecar import read_footer, sidecar_path
from vlm.errors import OutputError

LABELS = np.array([[4, 2, 0], [7, -1, -1], [-1, -1, -1], [1, 3, -1]])


def parquet(column, **said) -> bytes:
    buffer = io.BytesIO()
    table = pa.table({"label": column}) if not isinstance(column, pa.Table) else column
    pq.write_table(table.replace_schema_metadata(said), buffer)
    return buffer.getvalue()


def rows(labels) -> list[tuple[int, ...]]:
    return [labels[row] for row in range(len(labels))]


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / "00000.clusters.parquet"
    write_sidecar(path, LABELS, num_classes=8, made_by="k-means, seed 0")
    labels = parse_sidecar(path.read_bytes())
    assert rows(labels) == [(4, 2, 0), (7,), (), (1, 3)]
    assert (labels.width, labels.origin) == (3, Origin(8, "k-means, seed 0"))
    count, said = read_footer(str(path))
    assert (count, Origin.of(said)) == (4, labels.origin)
    schema = pq.read_schema(path)
    assert schema.field("label").type == pa.list_(pa.int32())
    assert schema.metadata[b"num_classes"] == b"8"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_a_shard_without_samples_or_labels_is_written_too(tmp_path, shape):
    path = tmp_path / "a.parquet"
    write_sidecar(path, np.zeros(shape, np.int64), num_classes=8, made_by="x")
    assert rows(parse_sidecar(path.read_bytes())) == [()] * shape[0]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OutputError, match=r"00000\.clusters\.parquet cannot be written"):
        write_sidecar(tmp_path / "absent/00000.clusters.parquet", LABELS, num_classes=8, made_by="x")


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([3, None, -1, 0]), [(3,), (), (), (0,)]),
        (pa.array([3, 5], pa.uint8()), [(3,), (5,)]),
        (pa.array([[3, 1], [], None, [2]]), [(3, 1), (), (), (2,)]),
        (pa.array([[3, 1], [], None, [2]], pa.large_list(pa.int64())), [(3, 1), (), (), (2,)]),
        (pa.array([[3, -1], None, [-1, -1], [2, 5]], pa.list_(pa.int16(), 2)), [(3,), (), (), (2, 5)]),
        (pa.chunked_array([[[3]], [[4], [5]]]), [(3,), (4,), (5,)]),
        (pa.array([], pa.list_(pa.int32())), []),
    ],
)
def test_labels_that_others_wrote_are_read(column, expected):
    labels = parse_sidecar(parquet(column))
    assert rows(labels) == expected
    assert labels.origin == Origin(None, None)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read"),
        (b"PAR1 and no more", "cannot be read"),
        (parquet(pa.table({"labels": [1], "key": ["a"]})), "has no column label; it has labels, key$"),
        (parquet(["a"]), "has string in the column label, not lists of whole numbers"),
        (parquet([[0.5]]), r"has list<.*double> in the column label"),
        (parquet([[1, None]]), "has lists with nothing at some place"),
        (parquet([[0, 7], [8]], num_classes="8"), "has the label 8, beyond its 8 classes"),
        (parquet([[0]], num_classes="many"), "says num_classes=many, which is no number"),
    ],
)
def test_what_is_no_sidecar_says_why(data, message):
    with pytest.raises(ValueError, match=message):
        parse_sidecar(data)


def test_the_digest_is_of_the_labels_alone(tmp_path):
    path = tmp_path / "a.parquet"
    write_sidecar(path, LABELS, num_classes=8, made_by="x")
    digest = parse_sidecar(path.read_bytes()).digest
    lists = [[4, 2, 0], [7], [], [1, 3]]
    assert parse_sidecar(parquet(pa.array(lists, pa.list_(pa.int64())))).digest == digest
    moved = [[4, 2], [0, 7], [], [1, 3]]  # the same numbers in other rows
    assert parse_sidecar(parquet(moved)).digest != digest


@pytest.mark.parametrize(
    ("shard", "folder", "expected"),
    [
        ("a/b/00000.tar", None, "a/b/00000.clusters.parquet"),
        ("00000.tar.gz", None, "00000.clusters.parquet"),
        ("s3://bucket/x/00000.tgz", None, "s3://bucket/x/00000.clusters.parquet"),
        ("s3://bucket/x/00000.tar", "runs/c/", "runs/c/00000.clusters.parquet"),
        ("00000.tar", "runs/c", "runs/c/00000.clusters.parquet"),
    ],
)
def test_a_sidecar_has_the_stem_of_its_shard(shard, folder, expected):
    assert sidecar_path(shard, "clusters", folder=folder) == expected
