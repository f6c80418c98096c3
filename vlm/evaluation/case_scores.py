"""What scores of pictures with captions say: cases won, groups won, and what guessing gets in both."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vlm.evaluation.case_fields import Case

TIE = 1e-6
"""Cosines closer than this count as equal: single precision cannot tell them apart, and a sum of the same
words in another order differs by about as much."""


class Contest(NamedTuple):
    """Scores of which all of the one kind should be above all of the other."""

    true: list[float]
    false: list[float]

    @property
    def is_open(self) -> bool:
        """Whether there is something to compare."""
        return bool(self.true and self.false)

    @property
    def is_won(self) -> bool:
        """Whether every true score is above every false one; never where one is nan."""
        return all(true - false > TIE for true in self.true for false in self.false)

    @property
    def credit(self) -> float:
        """1 if won, 0 if lost; of scores that tie, the chance that a random order of them wins.

        With one score of each kind a tie is one half.
        """
        if any(map(math.isnan, (*self.true, *self.false))):
            return 0.0
        low, high = min(self.true), max(self.false)
        if low - high < -TIE:
            return 0.0
        num_true = sum(score - high <= TIE for score in self.true)
        num_false = sum(low - score <= TIE for score in self.false)
        return 1 / math.comb(num_true + num_false, num_true)

    @property
    def guess(self) -> float:
        """The chance that scores in a random order win."""
        return 1 / math.comb(len(self.true) + len(self.false), len(self.true))


@dataclass(frozen=True, slots=True, kw_only=True)
class Macro:
    """Which categories count in the mean over categories, each weighing the same."""

    min_cases: int
    leaves_out: frozenset[str]

    def counts(self, category: str, num_cases: int) -> bool:
        """Whether a category of so many cases counts."""
        return num_cases >= self.min_cases and category not in self.leaves_out


def by_category(
    cases: Sequence[Case], values: Sequence[float | None], *, name: str, macro: Macro
) -> dict[str, float]:
    """Means of values of cases: `<category>_<name>`, and of all of them.

    With several categories, or none, there is `<name>`, the mean over all cases, and with several
    `macro_<name>`, the mean over categories.

    Args:
        values: None where a case has none.
    """
    known = [(case.category, value) for case, value in zip(cases, values, strict=True) if value is not None]
    if not known:
        return {}
    categories: dict[str, list[float]] = {}
    for category, value in known:
        if category is not None:
            categories.setdefault(category, []).append(value)
    means = {category: _mean(found) for category, found in categories.items()}
    metrics = {metric_of(category, name): mean for category, mean in means.items()}
    if len(categories) != 1:
        metrics[name] = _mean([value for _, value in known])
    counted = [means[name] for name, found in categories.items() if macro.counts(name, len(found))]
    if len(categories) > 1 and counted:
        metrics[f"macro_{name}"] = _mean(counted)
    return metrics


def metric_of(category: str, name: str) -> str:
    """`<category>_<name>`, without blanks."""
    return f"{'_'.join(category.split())}_{name}"


class GroupContests(NamedTuple):
    """What is compared within a group."""

    text: list[Contest]
    """Of each picture, its captions."""
    image: dict[str, Contest]
    """Of each caption, the pictures."""

    @property
    def all(self) -> list[Contest]:
        return [*self.text, *self.image.values()]


def group_contests(cases: Sequence[Case], contests: Sequence[Contest]) -> dict[str, GroupContests]:
    """The groups in which some caption is true of one picture and false of another.

    Args:
        contests: of each case, the scores of its picture with its captions.
    """
    members: dict[str, list[int]] = {}
    for row, case in enumerate(cases):
        if case.group is not None:
            members.setdefault(case.group, []).append(row)
    found = {
        group: _group([cases[row] for row in rows], [contests[row] for row in rows])
        for group, rows in members.items()
    }
    return {group: compared for group, compared in found.items() if compared.image}


def _group(cases: Sequence[Case], contests: Sequence[Contest]) -> GroupContests:
    image: dict[str, Contest] = {}
    for case, contest in zip(cases, contests, strict=True):
        for caption, score in zip(case.true, contest.true, strict=True):
            image.setdefault(caption, Contest([], [])).true.append(score)
        for caption, score in zip(case.false, contest.false, strict=True):
            image.setdefault(caption, Contest([], [])).false.append(score)
    return GroupContests(
        text=[contest for contest in contests if contest.is_open],
        image={caption: contest for caption, contest in image.items() if contest.is_open},
    )


def group_metrics(groups: Mapping[str, GroupContests]) -> dict[str, float]:
    """Shares of groups: every picture prefers its captions (`text_score`), every caption its pictures
    (`image_score`), both (`group_score`). A tie is no win. Where pictures have true or false captions alone,
    there is the last one only.

    Source: arXiv:2204.03162, section 3.2.
    """
    return {name: _mean(won) for name, won in groups_won(groups).items()}


def groups_won(groups: Mapping[str, GroupContests]) -> dict[str, list[float]]:
    """Of each of `group_metrics`, 1 for each group that is won and 0 for each other."""
    if not groups:
        return {}
    won = {}
    if all(group.text for group in groups.values()):
        won["text_score"] = _won([group.text for group in groups.values()])
        won["image_score"] = _won([list(group.image.values()) for group in groups.values()])
    won["group_score"] = _won([group.all for group in groups.values()])
    return won


def group_chance(groups: Mapping[str, GroupContests]) -> dict[str, float]:
    """What random scores get in `group_metrics`, each pair of a picture and a caption with one of its own.

    That of `group_score` is known where every true pair of a group is compared with every false one.
    """
    chance = {
        "text_score": _mean(
            [math.prod((c.guess for c in group.text), start=1.0) for group in groups.values()]
        ),
        "image_score": _mean(
            [math.prod((c.guess for c in group.image.values()), start=1.0) for group in groups.values()]
        ),
    }
    whole = [(_whole(group), group) for group in groups.values()]
    if all(len(pairs.true) * len(pairs.false) == _comparisons(group) for pairs, group in whole):
        chance["group_score"] = _mean([pairs.guess for pairs, _ in whole])
    return {name: value for name, value in chance.items() if name in group_metrics(groups)}


def _whole(group: GroupContests) -> Contest:
    """All true and all false pairs of a group; those that texts compare are those that images compare."""
    contests = group.text or list(group.image.values())
    return Contest([s for c in contests for s in c.true], [s for c in contests for s in c.false])


def _comparisons(group: GroupContests) -> int:
    return sum(len(contest.true) * len(contest.false) for contest in group.all)


def _won(contests: Sequence[Sequence[Contest]]) -> list[float]:
    return [float(all(contest.is_won for contest in part)) for part in contests]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def best_threshold(contests: Sequence[Contest]) -> float:
    """The score from which on a caption counts as true, with the most right; the lowest of several.

    It lies halfway between two scores that occur, or is the lowest of all, or just above the highest.
    """
    scored = sorted(
        [(score, 1) for contest in contests for score in contest.true]
        + [(score, -1) for contest in contests for score in contest.false]
    )
    right = best = 0  # relative to all being called true
    threshold = scored[0][0]
    for (score, truth), (following, _) in zip(scored, [*scored[1:], (math.inf, 0)], strict=True):
        right -= truth
        if right > best and following > score:
            best = right
            threshold = (score + following) / 2 if following < math.inf else math.nextafter(score, math.inf)
    return threshold


def share_told_right(contests: Sequence[Contest], threshold: float) -> float:
    """The share of captions, true or false, that a threshold tells right."""
    right = [score >= threshold for contest in contests for score in contest.true]
    right += [not score >= threshold for contest in contests for score in contest.false]
    return _mean([float(value) for value in right])
