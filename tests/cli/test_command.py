import pytest

from vlm.cli.command import quote_braces


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("data.train.shards=a/{00..41}.tar", "data.train.shards='a/{00..41}.tar'"),
        ("data.train.shards='a/{00..41}.tar'", "data.train.shards='a/{00..41}.tar'"),
        ("data.mix={}", "data.mix={}"),
        ("data.mix={a: {share: 0.5}}", "data.mix={a: {share: 0.5}}"),
        ("paths.data=${run.name}", "paths.data=${run.name}"),
        ("optimizer.lr=1e-3", "optimizer.lr=1e-3"),
        ("--help", "--help"),
    ],
)
def test_only_bare_values_with_braces_are_quoted(typed: str, read: str) -> None:
    assert quote_braces(typed) == read
