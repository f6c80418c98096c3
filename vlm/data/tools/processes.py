"""Tasks shared out to several processes."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from vlm.errors import ConfigError, DataError, VlmError

Task = TypeVar("Task")
Result = TypeVar("Result")
Advance = Callable[[int], None]


def number_of_workers(workers: int | None) -> int:
    """The value of the key `workers`; null is every core that this process may use.

    Raises:
        ConfigError: it is below 1.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers={workers} must be at least 1")
    if workers is not None:
        return workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tasks(
    function: Callable[[Task, Advance], Result],
    tasks: Iterable[Task],
    *,
    num_workers: int,
    advance: Advance,
) -> Generator[Result, None, None]:
    """Results of tasks as they are done, in any order; with one worker in this process, in their order.

    Processes end when the generator ends or is closed, and when this process is killed.

    Args:
        function: of a task and of what it may call with numbers of things done; picklable.
        advance: is given those numbers, here.

    Raises:
        DataError: a process was killed.
    """
    if num_workers == 1:
        for task in tasks:
            yield function(task, advance)
        return
    rest = iter(tasks)
    workers: dict[connection.Connection, BaseProcess] = {}
    try:
        for task in _first(rest, num_workers):
            ours, process = _start(function)
            workers[ours] = process
            ours.send(task)
        busy = set(workers)
        while busy:
            for ready in connection.wait(list(busy)):
                assert isinstance(ready, connection.Connection)
                kind, value = _receive(ready)
                if kind == "advance":
                    advance(value)
                    continue
                busy.discard(ready)
                for task in _first(rest, 1):
                    ready.send(task)
                    busy.add(ready)
                yield value
    finally:
        for process in workers.values():
            process.terminate()
        for process in workers.values():
            process.join()


def _first(tasks: Iterator[Task], count: int) -> Iterator[Task]:
    for _, task in zip(range(count), tasks, strict=False):
        yield task


def _start(function: Callable[..., Any]) -> tuple[connection.Connection, BaseProcess]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=_serve, args=(function, theirs), daemon=True)
    process.start()
    theirs.close()  # so that the end of the process is the end of what `ours` receives
    return ours, process


def _receive(worker: connection.Connection) -> tuple[str, Any]:
    try:
        kind, value = worker.recv()
    except (EOFError, ConnectionError):
        raise DataError(
            "a worker process was killed, most often because memory ran out; lower workers=, then run again"
        ) from None
    if kind == "error":
        raise value
    return kind, value


def _serve(function: Callable[..., Any], parent: connection.Connection) -> None:
    """The life of a worker process: tasks in, results out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    threading.Thread(target=_die_with_parent, daemon=True).start()
    while True:
        task = parent.recv()
        try:
            message = ("done", function(task, lambda count: parent.send(("advance", count))))
        except (VlmError, OSError) as error:
            message = ("error", error)
        except Exception:  # others may not survive pickling
            message = ("error", RuntimeError(traceback.format_exc()))
        parent.send(message)


def _die_with_parent() -> None:
    """End at once when the parent was killed: a worker that goes on would write beside the next run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
