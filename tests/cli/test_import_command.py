from pathlib import Path

import pytest
from typed import said_by

TINY = Path(__file__).parents[1] / "inference" / "open_clip_tiny"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out=x"], "no value for from"),
        (["from=nowhere", "out=x"], "from='nowhere' does not exist"),
        ([f"from={TINY}", "out=x"], "has no tokenizer; set tokenizer_path=FILE"),
        ([f"from={TINY}", "out=x", "activation=quick_gelu"], "activation=quick_gelu, but"),
        ([f"from={TINY}", "out=x", "activation=relu"], "activation='relu'"),
        ([f"from={TINY}", "out=x", "head_width=wide"], "head_width='wide'"),
        ([f"from={TINY}", "out=x", "tokenizer_path=none.json"], "none.json"),
        ([f"from={TINY}", "out=x", "tokenizer_path=merges.txt"], "merges.txt"),
    ],
)
def test_a_mistake_is_one_message(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = said_by(monkeypatch, "import", *arguments)
    assert message in said
    assert "Error: " in said
    assert not (tmp_path / "x").exists()
