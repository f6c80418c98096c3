"""`vlm shards check`: find what is broken or double. Exit code 1 where training would replace or stop."""

import sys
from pathlib import Path

from omegaconf import DictConfig

from vlm.cli.command import command
from vlm.data.tools.check import ERRORS, WARNINGS, Check, Findings
from vlm.settings import build, resolve

_SHOWN = 3


@command("shards_check")
def main(config: DictConfig) -> None:
    """Entry point of `vlm shards check`."""
    values = resolve(config)
    values["tokenizer_path"] = _tokenizer_file(values["tokenizer_path"])
    check: Check = build(values, "")
    findings = check.run()
    print(_table(findings))
    print(f"findings: {check.out}")
    if findings.errors:
        sys.exit(1)


def _tokenizer_file(path: str | None) -> str | None:
    """The file itself, or that of a run or checkpoint."""
    if path is None or not Path(path).is_dir():
        return path
    from vlm.inference import TOKENIZER, latest_checkpoint

    return str(latest_checkpoint(path) / TOKENIZER)


def _table(findings: Findings) -> str:
    lines = [
        f"{findings.samples} samples in {findings.shards} shards, {findings.size / 1e6:.1f} MB",
        "",
        *(_line(f"with {name}", count, findings) for name, count in findings.members.items()),
        *(_line(f"with a caption in {name}", count, findings) for name, count in findings.fields.items()),
        "",
        f"length of captions in {findings.unit}: "
        + ", ".join(f"{name} {value}" for name, value in findings.lengths.items())
        + (f" (context {findings.context_length})" if findings.context_length else ""),
    ]
    for title, kinds in (("errors", ERRORS), ("warnings", WARNINGS)):
        lines += ["", title]
        for kind in kinds:
            if kind not in findings.counts:
                lines.append(f"  {kind:<40}not counted: give tokenizer_path=")
                continue
            lines.append(_line(kind, findings.counts[kind], findings))
            named = findings.named.get(kind, [])
            lines += [f"      {text}" for text in named[:_SHOWN]]
            if len(named) < findings.counts[kind] or len(named) > _SHOWN:
                lines.append("      …")
    return "\n".join(lines)


def _line(name: str, count: int, findings: Findings) -> str:
    share = f"{count / findings.samples:8.2%}" if findings.samples and count else ""
    return f"  {name:<40}{count:>10}  {share}".rstrip()
