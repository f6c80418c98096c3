import pytest

from vlm.cli.command import quote_value


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("data.train.shards=a/{00..41}.tar", "data.train.shards='a/{00..41}.tar'"),
        ("data.train.shards='a/{00..41}.tar'", "data.train.shards='a/{00..41}.tar'"),
        ("data.mix={}", "data.mix={}"),
        ("input=图片/表.csv", "input='图片/表.csv'"),
        ("out=packed/déjà", "out='packed/déjà'"),
        ("caption=图", "caption='图'"),
        ('caption=["标题"]', 'caption=["标题"]'),
        ("data.mix={a: {share: 0.5}}", "data.mix={a: {share: 0.5}}"),
        ("paths.data=${run.name}", "paths.data=${run.name}"),
        ("optimizer.lr=1e-3", "optimizer.lr=1e-3"),
        ("--help", "--help"),
    ],
)
def test_only_bare_values_that_need_it_are_quoted(typed: str, read: str) -> None:
    assert quote_value(typed) == read
