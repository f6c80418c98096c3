"""A run that looks at itself: numbers that mean trouble, what was seen, and what to change."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vlm.data import TrainSet
from vlm.data.tokenizers import Tokenizer
from vlm.distributed import max_over_ranks
from vlm.types import Batch

log = logging.getLogger(__name__)

AT_CHANCE = 0.98
"""Share of the loss of guessing above which nothing has been learnt,"""
AT_CHANCE_STEPS = 300
"""if it stays there for so many steps after the warm-up."""
WAITING = 0.25
"""Share of the time spent waiting for data that is too much,"""
WAITING_LOGS = 3
"""in so many rows of the log, one after the other."""
TRUNCATED = 0.01
"""Share of captions cut by the context length that is too much."""
CAPTIONS_SEEN = 1000
NEVER = 2**62


class Finite:
    """The first step whose loss or gradient was not finite, without waiting for the device at each step."""

    def __init__(self) -> None:
        self._first_bad = torch.tensor(NEVER)

    def look(self, step: int, *values: Tensor) -> None:
        """Note whether the scalars of a step are finite on this rank."""
        finite = torch.stack([value.detach().squeeze() for value in values]).isfinite().all()
        first = self._first_bad.to(finite.device)
        self._first_bad = torch.where(finite, first, first.clamp(max=step))

    def first_bad_step(self) -> int | None:
        """Of all ranks; every rank must call it."""
        first = int(-max_over_ranks(-self._first_bad))
        return None if first == NEVER else first


class Watch:
    """Warns, once each, of a loss that stays at chance and of time spent waiting for data.

    Args:
        chance_losses: value of terms of the loss, by name, for guessing.
        warmup_steps: until then a loss may stand still.
        worker_counts: values that data.num_workers may have.
    """

    def __init__(
        self,
        *,
        chance_losses: Mapping[str, float],
        warmup_steps: int,
        num_workers: int,
        worker_counts: Sequence[int],
    ) -> None:
        self.chance_losses = chance_losses
        self.warmup_steps = warmup_steps
        self.num_workers = num_workers
        self.worker_counts = worker_counts
        self._left_chance_at = dict.fromkeys(chance_losses, warmup_steps)
        self._logs_waiting = 0
        self._warned: set[str] = set()

    def look(self, step: int, metrics: Mapping[str, float]) -> None:
        """Look at a row of the log."""
        for name, chance in self.chance_losses.items():
            loss = metrics[f"train/loss/{name}"]
            if loss < AT_CHANCE * chance:
                self._left_chance_at[name] = max(step, self.warmup_steps)
            elif step - self._left_chance_at[name] >= AT_CHANCE_STEPS:
                self._warn(
                    name,
                    f"train/loss/{name} has stayed at {loss:.3f} for {AT_CHANCE_STEPS} steps; guessing gives "
                    f"{chance:.3f}, so nothing is being learnt: check that captions belong to their images "
                    "(vlm shards preview), then lower optimizer.lr or lengthen schedule.warmup_steps",
                )
        share = metrics["time/data_wait_share"]
        self._logs_waiting = self._logs_waiting + 1 if share > WAITING else 0
        if self._logs_waiting == WAITING_LOGS:
            more = [count for count in self.worker_counts if count > self.num_workers]
            advice = (
                f"data.num_workers={more[0]} (now {self.num_workers})"
                if more
                else "larger data.stream_groups, which allows more data.num_workers"
            )
            self._warn(
                "data",
                f"{share:.0%} of the time is spent waiting for data; try {advice}, smaller stored images or "
                "faster storage (vlm bench data says where the time goes)",
            )

    def _warn(self, about: str, message: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            log.warning("%s", message)


def warn_of_truncation(data: TrainSet, tokenizer: Tokenizer) -> None:
    """Warn where many of the first captions lose their end to the context length."""
    captions = list(islice(data.captions(CAPTIONS_SEEN), CAPTIONS_SEEN))
    cut = tokenizer.count_truncated(captions)
    if cut > TRUNCATED * len(captions):
        log.warning(
            "%.1f %% of the first %d captions are longer than tokenizer.context_length=%d tokens and lose "
            "their end; raise it together with model.text.context_length, or shorten the captions",
            100 * cut / len(captions),
            len(captions),
            tokenizer.context_length,
        )


def keep_for_a_look(batch: Batch, tokenizer: Tokenizer | None, folder: Path, *, rank: int) -> None:
    """Write keys and captions of a rank's rows as json, and their images as one sheet in the same order."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"key": key} for key in batch["key"]]
    if tokenizer is not None:
        for row, ids in zip(rows, batch["text"], strict=True):
            row["caption"] = tokenizer.decode(ids.tolist())
    (folder / f"rank_{rank}.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    sheet = _sheet(batch["image"])
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(folder / f"rank_{rank}.png")


def _sheet(images: Tensor) -> Tensor:
    """Images side by side, in rows as many as columns; bytes, channels first."""
    count, channels, height, width = images.shape
    columns = math.isqrt(count - 1) + 1
    lines = -(-count // columns)
    padded = torch.cat([images, images.new_zeros(columns * lines - count, channels, height, width)])
    grid = padded.reshape(lines, columns, channels, height, width)
    return grid.permute(2, 0, 3, 1, 4).reshape(channels, lines * height, columns * width)
