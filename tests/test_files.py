import errno
import os
from pathlib import Path

import pytest

from vlm.errors import OutputError
from vlm.files import write_json, writing


@pytest.mark.parametrize(
    ("number", "full"),
    [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.ENOENT, False), (errno.EACCES, False)],
)
def test_room_is_asked_for_only_where_it_is_short(tmp_path: Path, number: int, full: bool) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(OutputError) as caught, writing(path):
        raise OSError(number, os.strerror(number), str(path))
    advice = "; what was written before is whole: make room and try again" if full else ""
    assert str(caught.value) == f"{path} cannot be written: {os.strerror(number)}{advice}"


def test_json_is_readable_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"标题": [0.5]}, indent=1)
    assert path.read_text("utf-8") == '{\n "标题": [\n  0.5\n ]\n}\n'
    with pytest.raises(TypeError):
        write_json(path, {"other": {1}}, indent=1)
    assert "标题" in path.read_text("utf-8")
    assert list(tmp_path.iterdir()) == [path]
