import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from clip_layout import write_layout
from tiny import tiny_loaded

from vlm.distributed import Topology
from vlm.errors import ConfigError
from vlm.evaluation import ClipBenchmarkData, MultiLabelZeroShot, Retrieval, ZeroShot, clip_benchmark
from vlm.evaluation.zero_shot import read_templates
from vlm.inference import Embedder


def embedder() -> Embedder:
    return Embedder(tiny_loaded(), Topology.current(), batch_size=8, num_workers=0)


def test_a_folder_without_type_is_a_classification(tmp_path: Path) -> None:
    write_layout(tmp_path, kind=None)
    evaluator = clip_benchmark(str(tmp_path), "test")
    assert isinstance(evaluator, ZeroShot)
    assert read_templates(evaluator.templates) == ["a {c} square", "{c}"]
    result = evaluator(embedder())
    assert result.num_samples == 12
    assert result.metrics.keys() == {"acc1", "mean_per_class_recall"}


def test_several_labels_are_ones_in_an_array(tmp_path: Path) -> None:
    write_layout(tmp_path, kind="multilabel")
    (tmp_path / "test" / "nshards.txt").write_text("1\n")
    with tarfile.open(tmp_path / "test" / "0.tar") as tar:
        pictures = [tar.extractfile(header).read() for header in tar if header.name.endswith(".png")]
    with tarfile.open(tmp_path / "test" / "0.tar", "w") as tar:
        for row, picture in enumerate(pictures):
            array = io.BytesIO()
            np.save(array, np.eye(4, dtype=np.float32)[row % 4] + np.eye(4, dtype=np.float32)[3 - row % 4])
            for kind, data in (("png", picture), ("npy", array.getvalue())):
                header = tarfile.TarInfo(f"s{row:07d}.{kind}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    evaluator = clip_benchmark(str(tmp_path), "test")
    assert isinstance(evaluator, MultiLabelZeroShot)
    evaluator.check()
    result = evaluator(embedder())
    assert (result.num_samples, result.notes["num_absent"]) == (len(pictures), 0)
    (task,) = ClipBenchmarkData(root=str(tmp_path)).tasks()
    assert task.name == "multilabel_classification"
    assert task.evaluator(embedder()).metrics == result.metrics


def test_retrieval_counts_every_line_of_a_text(tmp_path: Path) -> None:
    write_layout(tmp_path, kind="retrieval\n")
    evaluator = clip_benchmark(str(tmp_path), "test")
    assert isinstance(evaluator, Retrieval)
    result = evaluator(embedder())
    assert (result.num_samples, result.details["num_captions"]) == (12, 24)


def test_what_is_missing_or_unknown_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nshards.txt is missing; set `root`"):
        clip_benchmark(str(tmp_path), "test")
    write_layout(tmp_path, kind="detection")
    with pytest.raises(ConfigError, match="'detection'; classification, multilabel and retrieval"):
        clip_benchmark(str(tmp_path), "test")
