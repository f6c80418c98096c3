"""The table of docs/concepts/cost_at_scale.md is that of its record, and the record that of the formulas."""

import json
import runpy
from pathlib import Path
from typing import Any

from vlm.bench.scale import Sizes, Speed, scale_report

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "experiments/2026-11-21_cost_at_scale"


def record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RECORD / "scale.json").read_text(encoding="utf-8"))
    return found


def test_the_record_is_what_the_formulas_give_with_its_speeds(tmp_path: Path) -> None:
    raw = record()["raw"]
    report = scale_report(Speed(**raw["speed"]), Sizes(**raw["sizes"]), given=raw["given"])
    assert [dict(row) for row in report.rows] == record()["rows"], "run vlm bench scale again"
    written = report.write(tmp_path)[1].read_text(encoding="utf-8").splitlines()
    found = (RECORD / "scale.md").read_text(encoding="utf-8").splitlines()
    assert found[:-1] == written[:-1]  # the last line is the machine


def test_the_page_has_the_table_of_the_record() -> None:
    page = (ROOT / "docs/concepts/cost_at_scale.md").read_text(encoding="utf-8")
    assert runpy.run_path(str(RECORD / "into_page.py"))["table"]() in page, "run into_page.py"
