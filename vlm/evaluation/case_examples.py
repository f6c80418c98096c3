"""Cases and groups that are won and lost, as a report shows them."""

from collections.abc import Sequence
from typing import Any

from vlm.evaluation.case_scores import Contest, group_contests
from vlm.evaluation.cases import Cases
from vlm.evaluation.evaluator import spread

NUM_EXAMPLES = 6
"""Of an outcome in a category; fewer where there are many categories."""
NUM_PICTURES = 120
"""About so many on a page."""
NUM_CATEGORIES = 30

Examples = dict[str, dict[str, list[dict[str, Any]]]]
"""Kind -> `won` and `lost` -> rows, each a picture with a true and a false caption, or pictures found for a
caption."""


def case_examples(cases: Cases, contests: Sequence[Contest]) -> Examples:
    """Some cases of each category, each with the captions that decided it."""
    categories: dict[str, dict[str, list[int]]] = {}
    for row, (case, contest) in enumerate(zip(cases.cases, contests, strict=True)):
        if contest.is_open:
            outcomes = categories.setdefault(case.category or "cases", {"won": [], "lost": []})
            outcomes["won" if contest.is_won else "lost"].append(row)
    names = list(categories)
    shown = [names[place] for place in spread(len(names), wanted=NUM_CATEGORIES)]
    wanted = max(1, min(NUM_EXAMPLES, NUM_PICTURES // (2 * max(1, len(shown)))))
    return {
        name: {
            outcome: [_case(cases, contests, rows[place]) for place in spread(len(rows), wanted=wanted)]
            for outcome, rows in categories[name].items()
        }
        for name in shown
    }


def _case(cases: Cases, contests: Sequence[Contest], row: int) -> dict[str, Any]:
    case, contest = cases.cases[row], contests[row]
    true = min(range(len(case.true)), key=contest.true.__getitem__)
    false = max(range(len(case.false)), key=contest.false.__getitem__)
    return {
        "sample": cases.picture[row],
        "true": case.true[true],
        "false": case.false[false],
        "true_score": contest.true[true],
        "false_score": contest.false[false],
    }


def group_examples(cases: Cases, contests: Sequence[Contest]) -> Examples:
    """Some captions that are true of a picture of their group and false of another, with these pictures."""
    outcomes: dict[str, list[dict[str, Any]]] = {"won": [], "lost": []}
    scored: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for case, contest, picture in zip(cases.cases, contests, cases.picture, strict=True):
        if case.group is None or case.group in cases.broken_groups:
            continue
        captions = scored.setdefault(case.group, {})
        for relevant, texts, scores in ((True, case.true, contest.true), (False, case.false, contest.false)):
            for text, score in zip(texts, scores, strict=True):
                item = {"position": picture, "score": score, "relevant": relevant}
                captions.setdefault(text, []).append(item)
    for name, group in group_contests(cases.cases, contests).items():
        for caption, contest in group.image.items() if name in scored else ():
            found = sorted(scored[name][caption], key=lambda item: (-item["score"], item["relevant"]))
            outcomes["won" if contest.is_won else "lost"].append({"caption": caption, "found": found})
    chosen = {
        outcome: [rows[place] for place in spread(len(rows), wanted=NUM_EXAMPLES)]
        for outcome, rows in outcomes.items()
    }
    return {"groups": chosen} if any(chosen.values()) else {}


def pictures_of(examples: Examples) -> list[int]:
    """The rows of all pictures that examples show."""
    rows = [row for outcomes in examples.values() for rows in outcomes.values() for row in rows]
    shown = {row["sample"] for row in rows if "sample" in row}
    return sorted(shown | {item["position"] for row in rows for item in row.get("found", [])})
