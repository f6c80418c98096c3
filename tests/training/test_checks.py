"""What a run says of itself, and when."""

import logging
from collections.abc import Sequence

import pytest
from tiny import tiny_tokenizer

from vlm.data import TrainSet
from vlm.training.checks import AT_CHANCE_STEPS, CAPTIONS_SEEN, WAITING_LOGS, Watch, warn_of_truncation

CHANCE, WARMUP = 5.0, 100


@pytest.fixture(autouse=True)
def _warnings(caplog):
    caplog.set_level(logging.WARNING, logger="vlm")


def watch(*, num_workers: int = 2, worker_counts: Sequence[int] = (0, 1, 2, 4)) -> Watch:
    return Watch(
        chance_losses={"itc": CHANCE},
        warmup_steps=WARMUP,
        num_workers=num_workers,
        worker_counts=worker_counts,
    )


def row(*, loss: float = 1.0, wait: float = 0.0) -> dict[str, float]:
    return {"train/loss/itc": loss, "time/data_wait_share": wait}


def steps_of_warnings(watch: Watch, losses: dict[int, float], caplog) -> list[int]:
    """The logged steps at which something was said."""
    said = []
    for step, loss in losses.items():
        before = len(caplog.records)
        watch.look(step, row(loss=loss))
        said += [step] * (len(caplog.records) - before)
    return said


def test_a_loss_at_chance_is_told_once_when_it_stayed_so_long_after_the_warm_up(caplog):
    losses = dict.fromkeys(range(50, 1000, 50), CHANCE)
    assert steps_of_warnings(watch(), losses, caplog) == [WARMUP + AT_CHANCE_STEPS]
    (message,) = caplog.messages
    assert "train/loss/itc has stayed at 5.000 for 300 steps; guessing gives 5.000" in message
    assert "vlm shards preview" in message
    assert "optimizer.lr" in message
    assert "schedule.warmup_steps" in message


def test_a_loss_that_left_chance_is_not_told_until_it_has_stayed_there_again(caplog):
    losses = dict.fromkeys(range(50, 1000, 50), CHANCE) | {350: 0.97 * CHANCE}
    assert steps_of_warnings(watch(), losses, caplog) == [350 + AT_CHANCE_STEPS]


def test_what_happens_during_the_warm_up_does_not_count(caplog):
    losses = dict.fromkeys(range(50, 1000, 50), CHANCE) | {50: 0.5 * CHANCE}
    assert steps_of_warnings(watch(), losses, caplog) == [WARMUP + AT_CHANCE_STEPS]


def test_a_loss_just_below_chance_counts_as_guessing(caplog):
    losses = dict.fromkeys(range(50, 1000, 50), 0.985 * CHANCE)
    assert steps_of_warnings(watch(), losses, caplog) == [WARMUP + AT_CHANCE_STEPS]


def test_a_loss_that_falls_is_not_told(caplog):
    losses = {step: CHANCE * (1 - step / 2000) for step in range(50, 1000, 50)}
    assert steps_of_warnings(watch(), losses, caplog) == []


def test_waiting_for_data_is_told_once_after_rows_in_succession(caplog):
    looking = watch()
    rows = [0.9] * (WAITING_LOGS - 1) + [0.2] + [0.4] * WAITING_LOGS + [0.2] + [0.9] * WAITING_LOGS
    told = []
    for step, wait in enumerate(rows):
        looking.look(step, row(wait=wait))
        told.append(len(caplog.records))
    assert told.index(1) == 2 * WAITING_LOGS - 1
    assert told[-1] == 1
    assert "40% of the time is spent waiting for data; try data.num_workers=4 (now 2)" in caplog.text


@pytest.mark.parametrize(
    ("num_workers", "advice"),
    [
        (0, "data.num_workers=1 (now 0)"),
        (1, "data.num_workers=2 (now 1)"),
        (4, "larger data.stream_groups, which allows more data.num_workers"),
    ],
)
def test_more_workers_are_advised_where_the_groups_allow_them(caplog, num_workers: int, advice: str) -> None:
    looking = watch(num_workers=num_workers)
    for step in range(WAITING_LOGS):
        looking.look(step, row(wait=0.5))
    assert f"try {advice}, smaller stored images" in caplog.text


class Captions(TrainSet):
    """Training data as far as its captions go: some long ones, then short ones."""

    def __init__(self, *, num_long: int) -> None:
        self.num_long = num_long

    def captions(self, limit: int):
        yield from ["a red square and " * 16] * self.num_long
        yield from ["a red square"] * (2 * limit)  # "roughly how many"


def test_captions_that_lose_their_end_are_told_with_their_share(caplog):
    warn_of_truncation(Captions(num_long=25), tiny_tokenizer())
    (message,) = caplog.messages
    assert message.startswith(f"2.5 % of the first {CAPTIONS_SEEN} captions are longer than ")
    assert "tokenizer.context_length=16 tokens" in message
    assert "model.text.context_length" in message


def test_a_few_long_captions_are_nothing_to_tell(caplog):
    warn_of_truncation(Captions(num_long=10), tiny_tokenizer())
    assert caplog.messages == []
