"""Every damaged input that was thought of ends as the page says, and loses nothing."""

import re
from collections import Counter
from pathlib import Path

import pytest

from fuzz.case import Case, run_case
from fuzz.page import PAGE, beginning_of
from fuzz.tried import all_cases, make_base

CASES = list(all_cases())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("fuzz") / "base")


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return PAGE.read_text(encoding="utf-8").splitlines()


def parameters() -> list:
    """Every fifth of each kind now, the others among the long tests."""
    numbers: Counter[str] = Counter()
    marked = []
    for case in CASES:
        numbers[case.kind] += 1
        marks = [] if numbers[case.kind] % 5 == 1 else [pytest.mark.long]
        marked.append(pytest.param(case, id=case.id, marks=marks))
    return marked


@pytest.mark.parametrize("case", parameters())
def test_damage_loses_nothing_and_ends_as_the_page_says(case: Case, base: Path, lines: list[str]) -> None:
    for row in run_case(case, base):
        assert any(line.startswith(beginning_of(row)) for line in lines), f"python tests/fuzz --write: {row}"


def test_the_page_has_every_case_once(lines: list[str]) -> None:
    assert len({(case.kind, case.what) for case in CASES}) == len(CASES) > 100
    rows = [line for line in lines if re.match(r"\| .* \| `", line)]
    assert len(rows) == sum(len(case.commands) for case in CASES)
    numbers = re.findall(r"\d+", "\n".join(lines[2:4]))
    assert [str(len(CASES)), str(len(rows))] == numbers[:2]
