import errno
import os
from pathlib import Path

import pytest

from vlm.errors import OutputError
from vlm.files import writing


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
