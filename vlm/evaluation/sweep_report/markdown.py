"""The table of a sweep in Markdown, for a paper or a pull request."""

from collections.abc import Sequence

from vlm.evaluation.sweep_report.cells import Sweep
from vlm.evaluation.sweep_report.table import Entry, Head, Table, shown

_TIED = "†"
_FAILED = "failed"


def markdown(sweep: Sweep, table: Table) -> str:
    """The whole of `report.md`."""
    cells = [place for place, head in enumerate(table.heads) if head.question is not None]
    others = [place for place, head in enumerate(table.heads) if head.question is None]
    parts = [
        f"# {_inline(sweep.folder.absolute().name)}",
        f"{len(sweep.checkpoints)} checkpoints, {len(sweep.datasets)} data sets, {len(sweep.cells)} cells. "
        "Percent, where the metric is a share.",
        _table(table, cells),
        _legend(table),
        *([f"## Averages\n\n{_table(table, others)}"] if others else []),
        *([f"## Failed\n\n{_failed(sweep)}"] if sweep.failures else []),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(table: Table, places: Sequence[int]) -> str:
    """Checkpoints down and questions across, or the other way round if that is narrower."""
    heads = [table.heads[place] for place in places]
    names = [_inline(point.name) for point, _ in table.rows]
    body = [[_entry(entries[place], table.heads[place]) for place in places] for _, entries in table.rows]
    titles = [_title(head, heads) for head in heads]
    if len(titles) <= len(names):
        return _lines(["checkpoint", *titles], [[name, *row] for name, row in zip(names, body, strict=True)])
    turned = [list(column) for column in zip(*body, strict=True)]
    return _lines(["", *names], [[title, *row] for title, row in zip(titles, turned, strict=True)])


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *rows])


def _title(head: Head, heads: Sequence[Head]) -> str:
    """With its task only where there are several."""
    several = len({other.group for other in heads}) > 1
    return _inline(", ".join(filter(None, [head.group if several else "", head.title, *head.about])))


def _entry(entry: Entry, head: Head) -> str:
    if entry.value is None:
        return _FAILED if entry.failed else ""
    text = shown(entry.value, head.metric, signed=head.signed)
    return f"**{text}**" if entry.best else f"{text}{_TIED if entry.tied else ''}"


def _legend(table: Table) -> str:
    entries = [entry for _, row in table.rows for entry in row]
    said = ["**Bold**: the best checkpoint."] if any(entry.best for entry in entries) else []
    if any(entry.tied for entry in entries):
        said.append(
            f"{_TIED}: not significantly worse than the best (paired bootstrap over queries, 95 %, not "
            "corrected for the number of comparisons)."
        )
    return " ".join([*said, *map(_inline, table.remarks)])


def _failed(sweep: Sweep) -> str:
    rows = [
        [_inline(name), _inline(str(question)), _inline(error)]
        for (name, question), error in sweep.failures.items()
    ]
    return "\n".join(
        f"| {' | '.join(cells)} |" for cells in [["checkpoint", "cell", "error"], ["---"] * 3, *rows]
    )


def _inline(text: str) -> str:
    """On one line, and nothing that ends a cell or begins a tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
