"""Put the table of scale.md into docs/concepts/cost_at_scale.md: `python into_page.py`."""

import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs/concepts/cost_at_scale.md"
MARKS = re.compile(r"(<!-- begin [^\n]*-->\n).*(<!-- end -->\n)", re.DOTALL)
LEFT_OUT = re.compile(r"\| \w+ \| (2|4|16|32|128|256|1,024|2,048) \|")


def table() -> str:
    """What stands in the record, without some of the rows."""
    lines = (HERE / "scale.md").read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not LEFT_OUT.match(line))


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(MARKS.sub(lambda found: found[1] + table() + found[2], page), encoding="utf-8")
