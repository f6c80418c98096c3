"""What a reader of the captions alone scores: how much of a benchmark needs no picture.

The reader is a logistic regression on differences between a true and a false caption: in counts of words, of
pairs of neighbouring words, and in length. It is fitted to four fifths of the cases of a category and scores
the rest; captions of one picture or group never stand on both sides.
"""

import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vlm.evaluation.case_fields import Case
from vlm.evaluation.case_scores import Contest

NUM_FOLDS = 5
L2 = 0.003
"""Weight of the penalty l2/2 · |w|² beside the mean loss, in nats."""
MAX_ITERATIONS = 200
WORD = re.compile("[\u3400-\u9fff]|[^\\W\u3400-\u9fff]+")
"""A Chinese character, or letters and digits without a gap."""


def text_only_contests(cases: Sequence[Case]) -> list[Contest | None]:
    """Scores of the captions of each case, by a reader that did not see it.

    None where there is nothing to compare, or nothing to learn from: all other cases of its category belong
    to the same fifth.
    """
    found: list[Contest | None] = [None] * len(cases)
    categories: dict[str | None, list[int]] = {}
    for row, case in enumerate(cases):
        if case.true and case.false:
            categories.setdefault(case.category, []).append(row)
    for rows in categories.values():
        for row, contest in zip(rows, _cross_scored([cases[row] for row in rows]), strict=True):
            found[row] = contest
    return found


def _cross_scored(cases: Sequence[Case]) -> list[Contest | None]:
    counts = {caption: _counts(caption) for case in cases for caption in (*case.true, *case.false)}
    fold = [_fold(case) for case in cases]
    pairs = [
        (number, counts[true], counts[false])
        for case, number in zip(cases, fold, strict=True)
        for true in case.true
        for false in case.false
    ]
    columns, entries = _differences([(true, false) for _, true, false in pairs])
    fold_of_pair = torch.tensor([number for number, _, _ in pairs])
    found: list[Contest | None] = [None] * len(cases)
    for held in sorted(set(fold)):
        learned_from = fold_of_pair != held
        if not learned_from.any():
            continue
        weights = _fitted(entries, learned_from, columns)
        for row, case in enumerate(cases):
            if fold[row] == held:
                found[row] = Contest(
                    [_score(counts[text], weights) for text in case.true],
                    [_score(counts[text], weights) for text in case.false],
                )
    return found


def _fold(case: Case) -> int:
    """By the group, else the picture, so that it depends neither on the order nor on the other cases."""
    name = case.group or case.image or " ".join(case.true)
    return zlib.crc32(name.encode()) % NUM_FOLDS


def _counts(caption: str) -> Counter[str]:
    words = WORD.findall(caption.lower())
    bounded = ["<", *words, ">"]
    pairs = (f"{first} {second}" for first, second in pairwise(bounded))
    return Counter([*words, *pairs, *["length"] * len(words)])


def _score(counts: Mapping[str, int], weights: Mapping[str, float]) -> float:
    return sum(number * weights.get(name, 0.0) for name, number in counts.items())


def _differences(
    pairs: Sequence[tuple[Counter[str], Counter[str]]],
) -> tuple[dict[str, int], Int64[Tensor, "n 3"]]:
    """A column for each name; what is not 0 in the first of each pair minus the second: row, column, value.

    All folds share them: to count takes longer than to fit.
    """
    columns: dict[str, int] = {}
    entries = [
        (row, columns.setdefault(name, len(columns)), true[name] - false[name])
        for row, (true, false) in enumerate(pairs)
        for name in dict.fromkeys((*true, *false))  # a set has another order in each process
        if true[name] != false[name]
    ]
    return columns, torch.tensor(entries, dtype=torch.int64).reshape(-1, 3)


def _fitted(
    entries: Int64[Tensor, "n 3"], learned_from: Bool[Tensor, " p"], columns: Mapping[str, int]
) -> dict[str, float]:
    """Weights that best tell the first of some pairs from the second; 0 where these pairs lack a name."""
    number = learned_from.cumsum(dim=0) - 1  # of a pair among those that are learned from
    kept = entries[learned_from[entries[:, 0]]]
    if not len(kept):
        return {}
    rows = torch.column_stack([number[kept[:, 0]], kept[:, 1:]])
    weights = _optimum(rows, num_rows=int(learned_from.sum()), num_columns=len(columns))
    return dict(zip(columns, weights.tolist(), strict=True))


def _optimum(entries: Int64[Tensor, "n 3"], *, num_rows: int, num_columns: int) -> Float[Tensor, " d"]:
    """Where the mean of log(1 + exp(-x·w)) + L2/2 · |w|² is smallest, for rows x given by what is not 0.

    Args:
        entries: row, column, value.
    """
    row, column, value = entries.unbind(dim=1)
    weight = torch.zeros(num_columns, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight], max_iter=MAX_ITERATIONS, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        margin = weight.new_zeros(num_rows).index_add(0, row, value * weight[column])
        loss = torch.nn.functional.softplus(-margin).mean() + L2 / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(objective)  # type: ignore[no-untyped-call]
    return weight.detach()
