import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlm.data.tools.processes import Advance, number_of_workers, run_tasks
from vlm.errors import ConfigError, DataError


def square(number: int, advance: Advance) -> tuple[int, int, int]:
    if number == 97:
        raise DataError("no 97")
    if number == 98:
        raise KeyError("a fault of ours")
    if number == 99:
        os.kill(os.getpid(), signal.SIGKILL)
    advance(1)
    return number, number**2, os.getpid()


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_every_task_is_done_once(num_workers: int) -> None:
    done: list[int] = []
    results = list(run_tasks(square, range(20), num_workers=num_workers, advance=done.append))
    assert sorted(result[:2] for result in results) == [(n, n**2) for n in range(20)]
    assert sum(done) == 20
    pids = {pid for _, _, pid in results}
    assert pids == {os.getpid()} if num_workers == 1 else os.getpid() not in pids


@pytest.mark.parametrize(
    ("number", "error", "message"),
    [(97, DataError, "no 97"), (98, RuntimeError, "a fault of ours"), (99, DataError, "process was killed")],
)
def test_an_error_ends_all_processes(number: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        list(run_tasks(square, [1, number, 2, 3], num_workers=2, advance=lambda _: None))


def test_fewer_tasks_than_workers() -> None:
    assert len(list(run_tasks(square, [3], num_workers=4, advance=lambda _: None))) == 1
    assert list(run_tasks(square, [], num_workers=4, advance=lambda _: None)) == []


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from vlm.data.tools.processes import run_tasks\n"
        "def task(path, advance):\n"
        "    Path(path).write_text(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    list(run_tasks(task, sys.argv[1:], num_workers=2, advance=print))\n"
    )
    files = [tmp_path / "a", tmp_path / "b"]
    parent = subprocess.Popen([sys.executable, str(script), *map(str, files)])
    until(lambda: all(file.exists() and file.read_text() for file in files))
    parent.kill()
    parent.wait()
    until(lambda: not any(is_running(int(file.read_text())) for file in files))


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_null_means_every_core() -> None:
    assert number_of_workers(None) >= 1
    assert number_of_workers(3) == 3
    with pytest.raises(ConfigError, match="workers=0"):
        number_of_workers(0)
