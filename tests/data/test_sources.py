import pytest

from vlm.data.sources import Source, expand_shards
from vlm.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path):
    for name in ("a-0.tar", "a-1.tar", "a-2.tar", "b-0.tar.gz", "notes.txt"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{d}/a-{{0..2}}.tar", ["a-0.tar", "a-1.tar", "a-2.tar"]),
        ("{d}/*-0.tar*", ["a-0.tar", "b-0.tar.gz"]),
        ("{d}/{{b-0.tar.gz,a-[12].tar}}", ["b-0.tar.gz", "a-1.tar", "a-2.tar"]),
        ("file://{d}/a-1.tar", ["a-1.tar"]),
        (["{d}/b-0.tar.gz", "{d}/a-*.tar"], ["b-0.tar.gz", "a-0.tar", "a-1.tar", "a-2.tar"]),
    ],
)
def test_patterns_name_files_in_order(folder, pattern, names):
    patterns = [pattern] if isinstance(pattern, str) else pattern
    shards = expand_shards([p.format(d=folder) for p in patterns], key="data.train.shards")
    assert shards == tuple(f"{folder}/{name}" for name in names)


def test_urls_and_pipes_expand_without_being_opened():
    assert expand_shards("https://host/{0..1}.tar?x=1", key="k") == (
        "https://host/0.tar?x=1",
        "https://host/1.tar?x=1",
    )
    assert expand_shards("pipe:cat /x/{0..1}.tar*", key="k") == ("pipe:cat /x/0.tar*", "pipe:cat /x/1.tar*")


@pytest.mark.parametrize(
    ("patterns", "error", "message"),
    [
        ("{d}", DataError, r"data.train.shards='(.*)' is a folder; use '\1/\*\.tar'$"),
        ("", DataError, "data.train.shards: '' does not exist"),
        ("{d}/", DataError, r"is a folder; use '.*[^/]/\*\.tar'$"),
        ("{d}/c-*.tar", DataError, r"data.train.shards='.*/c-\*.tar' matches no file"),
        ("{d}/a-{{0..4}}.tar", DataError, "data.train.shards: '.*/a-3.tar' does not exist and 1 more"),
        ("{d}/absent/a.tar", DataError, "data.train.shards: '.*/absent/a.tar' does not exist;"),
        ("{d}/a-{{0..2.tar", ConfigError, "data.train.shards='.*' has braces that do not match"),
        ("{d}/{{a-0,a-0}}.tar", DataError, "data.train.shards names '.*/a-0.tar' 2 times"),
    ],
)
def test_a_pattern_that_names_nothing_says_which(folder, patterns, error, message):
    with pytest.raises(error, match=message):
        expand_shards(patterns.format(d=folder), key="data.train.shards")


def test_no_pattern_at_all_is_an_error():
    with pytest.raises(DataError, match=r"data\.train\.shards is empty"):
        expand_shards([], key="data.train.shards")


def test_one_string_and_a_list_of_one_are_the_same_source():
    assert Source(shards="a.tar", captions="txt") == Source(shards=["a.tar"], captions=["txt"])
