"""`maker=llm` beside a server on this machine that answers, fails, hangs and talks nonsense."""

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from negative_rows import negative_rows
from small_shards import image_bytes, write_tar

from vlm.cli import main as vlm_command
from vlm.curation.negatives import Filters, Llm, answers, endpoint, make_negatives
from vlm.curation.negatives.endpoint import Pace
from vlm.curation.negatives.llm import messages, read_answer
from vlm.curation.negatives.rules import RULES
from vlm.data.negatives import parse_negatives
from vlm.errors import ConfigError, EndpointError

CAPTIONS = [f"a person with number {n} on a red shirt" for n in range(6)] + ["一个穿红色衣服的人"]


def answered(text, *, ended_by="stop"):
    message = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": ended_by}
    return 200, json.dumps(
        {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [message]}
    )


def rewritten(question):
    """A good answer: another for every task."""
    task = str(len(question["messages"][0]["content"]))
    caption = question["messages"][-1]["content"]
    return answered(caption.replace("red", f"blue {task}").replace("红色", f"蓝色{task}"))


class Fake:
    """A server whose answers are those of a function of the question; what it was asked."""

    def __init__(self) -> None:
        self.reply: Callable = rewritten
        self.asked: list[dict] = []
        self.keys: list[str | None] = []
        self.url = ""


@contextmanager
def serving(fake):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.asked.append(question)
            fake.keys.append(self.headers["Authorization"])
            status, body = fake.reply(question)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        fake.url = f"http://127.0.0.1:{server.server_port}/v1"
        yield
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def fake():
    server = Fake()
    with serving(server):
        yield server


def shards(folder, captions=CAPTIONS):
    samples = {
        f"{n:06d}": {"png": image_bytes((n, 2, 3)), "txt": caption.encode()}
        for n, caption in enumerate(captions)
    }
    write_tar(folder / "00000.tar", dict(list(samples.items())[:4]))
    write_tar(folder / "00001.tar", dict(list(samples.items())[4:]))


def llm(fake, **changes):
    values = {
        "model": "small",
        "base_url": fake.url,
        "api_key_env": None,
        "rules": list(RULES),
        "temperature": 0.7,
        "max_tokens": 40,
        "concurrency": 3,
        "requests_per_minute": None,
        "timeout_s": 10.0,
        "retries": 2,
    }
    return Llm(**{**values, **changes})


def make(folder, maker, *, per_caption=2, name="negatives"):
    return make_negatives(
        f"{folder}/*.tar",
        maker,
        captions="txt",
        language="auto",
        name=name,
        out=None,
        report=folder / "report",
        filters=Filters(per_caption=per_caption, length_ratio=2.0),
        seed=0,
        workers=2,
    )


def rows(folder, name="negatives"):
    files = sorted(folder.glob(f"*.{name}.parquet"))
    return [row for path in files for row in negative_rows(parse_negatives(path.read_bytes()))]


def test_each_caption_gets_the_answers_to_its_tasks(tmp_path, fake):
    shards(tmp_path)
    made = make(tmp_path, llm(fake))
    assert [{negative.caption for negative in row} for row in rows(tmp_path)] == [
        {caption} for caption in CAPTIONS
    ]
    assert all(len(row) == 2 for row in rows(tmp_path))
    assert all("blue" in n.negative or "蓝色" in n.negative for row in rows(tmp_path) for n in row)
    assert made.counts.kept == 14
    assert len(fake.asked) == 14
    assert all(question["model"] == "small" and question["temperature"] == 0.7 for question in fake.asked)


def test_a_start_after_the_end_asks_nothing(tmp_path, fake):
    shards(tmp_path)
    make(tmp_path, llm(fake))
    first = rows(tmp_path)
    fake.asked.clear()
    make(tmp_path, llm(fake))
    (tmp_path / "00000.negatives.parquet").unlink()
    make(tmp_path, llm(fake))
    assert not fake.asked
    assert rows(tmp_path) == first


def test_other_settings_are_asked_anew(tmp_path, fake):
    shards(tmp_path)
    make(tmp_path, llm(fake))
    fake.asked.clear()
    make(tmp_path, llm(fake, model="large"), name="large")
    assert len(fake.asked) == 14


@pytest.mark.parametrize("status", [500, 503, 429])
def test_an_error_of_the_server_is_asked_again(tmp_path, fake, status):
    shards(tmp_path)
    failed = set()

    def reply(question):
        key = json.dumps(question["messages"])
        if key not in failed:
            failed.add(key)
            return status, "{}"
        return rewritten(question)

    fake.reply = reply
    assert make(tmp_path, llm(fake)).counts.kept == 14
    assert len(fake.asked) == 28


def test_a_server_that_goes_down_loses_nothing(tmp_path, fake):
    shards(tmp_path)
    whole = tmp_path / "whole"
    shards(whole)
    make(whole, llm(fake))
    answered_before = []

    def reply(question):
        if len(answered_before) == 10:
            return 500, "{}"
        answered_before.append(question)
        return rewritten(question)

    fake.reply = reply
    with pytest.raises(EndpointError, match="type the same command again"):
        make(tmp_path, llm(fake, concurrency=1))
    assert (tmp_path / "00000.negatives.parquet").exists()
    assert not (tmp_path / "00001.negatives.parquet").exists()
    fake.reply = rewritten
    fake.asked.clear()
    make(tmp_path, llm(fake))
    assert len(fake.asked) == 4
    assert rows(tmp_path) == rows(whole)


def test_nobody_listens(tmp_path):
    shards(tmp_path)
    fake = Fake()
    with serving(fake):
        pass
    with pytest.raises(
        EndpointError, match=r"maker.base_url=http://127.0.0.1:\d+/v1 gave no answer in 2 tries"
    ):
        make(tmp_path, llm(fake, retries=1))
    assert not rows(tmp_path)


def test_a_slow_server_is_not_waited_for(tmp_path, fake):
    shards(tmp_path)
    release = threading.Event()

    def reply(question):
        release.wait(20)
        return rewritten(question)

    fake.reply = reply
    began = time.monotonic()
    with pytest.raises(EndpointError, match=r"raise maker.timeout_s"):
        make(tmp_path, llm(fake, timeout_s=0.2, retries=1))
    assert time.monotonic() - began < 15
    release.set()


@pytest.mark.parametrize(
    ("reply", "cause"),
    [
        (lambda question: answered("  \n "), "empty answer"),
        (lambda question: answered("Sure!\nHere it is: a dog"), "answer of several lines"),
        (lambda question: answered(question["messages"][-1]["content"].upper()), "identical to its caption"),
        (lambda question: answered("no"), "length"),
    ],
)
def test_nonsense_is_counted_by_its_cause(tmp_path, fake, reply, cause):
    shards(tmp_path, CAPTIONS[:6])
    fake.reply = reply
    made = make(tmp_path, llm(fake))
    assert made.counts.kept == 0
    assert {outcome for _, outcome in made.counts.outcomes} == {cause}
    assert sum(made.counts.outcomes.values()) == 30
    assert rows(tmp_path) == [()] * 6
    assert cause in made.report.read_text()


@pytest.mark.parametrize(
    ("reply", "cause"),
    [
        (lambda question: answered(None), "no answer in the reply"),
        (lambda question: (400, '{"error": {"message": "content filter"}}'), "refused by the endpoint"),
    ],
)
def test_a_question_without_an_answer_is_counted_by_its_cause(tmp_path, fake, reply, cause):
    shards(tmp_path)
    fake.reply = lambda question: (
        reply(question) if "number 2" in question["messages"][-1]["content"] else rewritten(question)
    )
    made = make(tmp_path, llm(fake))
    assert made.counts.outcomes.total() == 12 + 5
    assert Counter(outcome for _, outcome in made.counts.outcomes.elements()) == {"kept": 12, cause: 5}
    assert [len(row) for row in rows(tmp_path)] == [2, 2, 0, 2, 2, 2, 2]


@pytest.mark.parametrize("body", ["<html>login</html>", "{}", '{"choices": []}', '{"error": "busy"}'])
def test_replies_of_something_else_than_a_model_are_no_negatives(tmp_path, fake, monkeypatch, body):
    monkeypatch.setattr(endpoint, "_FIRST_PAUSE_S", 0.01)
    shards(tmp_path)
    fake.reply = lambda question: (200, body)
    with pytest.raises(EndpointError, match=r"gave no answer in 3 tries .* hold no choices"):
        make(tmp_path, llm(fake, concurrency=1))
    assert len(fake.asked) == 3
    assert not list(tmp_path.glob("*.negatives.parquet"))
    fake.reply = rewritten
    assert make(tmp_path, llm(fake)).counts.kept == 14


def test_a_reply_of_something_else_is_asked_for_again(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(endpoint, "_FIRST_PAUSE_S", 0.01)
    shards(tmp_path)
    replies = iter([(200, "<html>busy</html>"), (200, "{}")])
    fake.reply = lambda question: next(replies, None) or rewritten(question)
    assert make(tmp_path, llm(fake, concurrency=1)).counts.kept == 14


def test_a_shard_of_which_no_question_is_answered_is_not_done(tmp_path, fake):
    shards(tmp_path)
    first = [f"number {n}" for n in range(4)]
    fake.reply = lambda question: (
        rewritten(question)
        if any(caption in question["messages"][-1]["content"] for caption in first)
        else answered("a person", ended_by="length")
    )
    with pytest.raises(EndpointError, match=r"00001.tar was answered \(cut off\).*raise maker.max_tokens"):
        make(tmp_path, llm(fake))
    assert [path.name for path in tmp_path.glob("*.parquet") if "negatives" in path.name] == [
        "00000.negatives.parquet"
    ]
    fake.reply = rewritten
    assert make(tmp_path, llm(fake)).counts.kept == 14


def test_a_model_that_answers_nothing_for_long_ends_the_work(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(answers, "_LONGEST_STREAK", 8)
    shards(tmp_path)
    fake.reply = lambda question: (400, '{"error": {"message": "no temperature"}}')
    with pytest.raises(EndpointError, match=r"none of 8 questions in a row, the last: refused .*no temperat"):
        make(tmp_path, llm(fake, concurrency=1))
    assert 8 <= len(fake.asked) <= 10  # the next sample may have begun


@pytest.mark.parametrize("ended_by", ["length", "content_filter"])
def test_an_answer_that_is_cut_off_is_none_and_is_asked_for_again(tmp_path, fake, ended_by):
    shards(tmp_path, CAPTIONS[:6])
    cut = "two of its nouns"

    def reply(question):
        whole = rewritten(question)
        if cut not in question["messages"][0]["content"]:
            return whole
        return answered("a person with a blue", ended_by=ended_by)

    fake.reply = reply
    made = make(tmp_path, llm(fake), per_caption=5)
    assert made.counts.of_rule("swap_nouns") == {"cut off": 6}
    assert made.counts.kept == 24
    for path in tmp_path.glob("*.negatives.parquet"):
        path.unlink()
    fake.asked.clear()
    fake.reply = rewritten
    assert make(tmp_path, llm(fake), per_caption=5).counts.kept == 30
    assert len(fake.asked) == 6


def test_a_caption_with_some_nonsense_gets_fewer(tmp_path, fake):
    shards(tmp_path)
    fake.reply = lambda question: (
        rewritten(question) if "two of its nouns" in question["messages"][0]["content"] else answered("")
    )
    make(tmp_path, llm(fake))
    assert [[n.rule for n in row] for row in rows(tmp_path)] == [["swap_nouns"]] * 6 + [[]]


@pytest.mark.parametrize(
    ("status", "key"), [(401, "maker.api_key_env"), (403, "maker.api_key_env"), (404, "maker.model")]
)
def test_a_wrong_key_or_model_ends_at_once(tmp_path, fake, status, key):
    shards(tmp_path)
    fake.reply = lambda question: (status, "{}")
    with pytest.raises(ConfigError, match=key):
        make(tmp_path, llm(fake))


def test_the_key_comes_from_the_environment(tmp_path, fake, monkeypatch):
    shards(tmp_path)
    with pytest.raises(ConfigError, match="SOME_KEY"):
        make(tmp_path, llm(fake, api_key_env="SOME_KEY"))
    monkeypatch.setenv("SOME_KEY", "secret")
    make(tmp_path, llm(fake, api_key_env="SOME_KEY"))
    assert set(fake.keys) == {"Bearer secret"}
    assert b"secret" not in b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_the_rate_is_kept(monkeypatch):
    now, slept = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", slept.append)
    pace = Pace(120.0)
    for _ in range(4):
        pace.wait()
    assert slept == [0.0, 0.5, 1.0, 1.5]
    now[0] = 10.0
    pace.wait()
    assert slept[-1] == 0.0


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("rule", RULES)
def test_every_task_has_five_examples_that_change_the_caption(rule, language):
    said = messages("CAPTION", rule, language)
    assert [message["role"] for message in said] == ["system", *["user", "assistant"] * 5, "user"]
    assert ("significantly different or opposite" if language == "en" else "明显不同或相反") in said[0][
        "content"
    ]
    for asked, answer in zip(said[1:-1:2], said[2:-1:2], strict=True):
        assert asked["content"] != answer["content"]
        assert read_answer(answer["content"], rule, language).text == answer["content"]


def test_thoughts_and_quotes_are_left_out():
    assert read_answer("<think>\na dog?\n</think>\n\n“a blue car”", "shuffle", "en").text == "a blue car"
    assert read_answer("一只狗", "shuffle", "en").cause == "answer in another language"


def test_thoughts_that_do_not_end_are_no_answer():
    found = read_answer("<think>\na dog?</think><think>a red car, or", "shuffle", "en")
    assert (found.text, found.cause) == ("", "thoughts without an end")


@pytest.mark.parametrize(
    ("answer", "language"),
    [
        ("Sure, here is the rewritten caption: a blue car", "en"),
        ("“Here's the new caption: a blue car”", "en"),
        ("HERE IS: a blue car", "en"),
        ("Rewritten caption: a blue car", "en"),
        ("好的，改写后的句子：一辆蓝色的车", "zh"),
        ("以下是改写后的描述: 一辆蓝色的车", "zh"),
        ("修改后：一辆蓝色的车", "zh"),
    ],
)
def test_an_answer_with_a_preamble_is_none(answer, language):
    found = read_answer(answer, "shuffle", language)
    assert (found.text, found.cause) == ("", "answer with a preamble")


@pytest.mark.parametrize(
    "answer", ["here is a blue car", "here is a clock at 10:30", "a surely blue car: new"]
)
def test_a_caption_that_resembles_a_preamble_is_an_answer(answer):
    assert read_answer(answer, "shuffle", "en").text == answer


@pytest.mark.parametrize(
    "change",
    [
        {"rules": ["paint"]},
        {"concurrency": 0},
        {"timeout_s": 0.0},
        {"retries": -1},
        {"requests_per_minute": 0.0},
    ],
)
def test_numbers_out_of_range_are_refused(change):
    with pytest.raises(ConfigError, match=f"maker.{next(iter(change))}"):
        llm(Fake(), **change)


def test_the_command_asks_an_endpoint(tmp_path, fake, monkeypatch):
    shards(tmp_path)
    words = ["vlm", "negatives", f"data={tmp_path}/*.tar", "maker=llm", f"report={tmp_path}/report"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match=r"no value for maker.model"):
        vlm_command.main()
    monkeypatch.setattr(
        sys, "argv", [*words, "maker.model=small", f"maker.base_url={fake.url}", "per_caption=1"]
    )
    vlm_command.main()
    assert len(fake.asked) == len(CAPTIONS)


def local_model(folder, *, ends):
    """Random; it ends its answers with any of `ends`."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    letters = {chr(code): code - 32 for code in range(32, 127)} | {"<unk>": 95}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=letters, merges=[], unk_token="<unk>"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(
        folder
    )
    config = transformers.GPT2Config(
        vocab_size=96, n_positions=4096, n_embd=8, n_layer=1, n_head=1, eos_token_id=ends
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)


def test_a_local_model_answers(tmp_path):
    folder = tmp_path / "model"
    local_model(folder, ends=list(range(96)))
    shards(tmp_path, CAPTIONS[:2])
    maker = llm(Fake(), model=str(folder), base_url=None, max_tokens=8)
    made = make(tmp_path, maker)
    assert made.counts.captions == 2
    assert sum(made.counts.outcomes.values()) >= 4
    first = rows(tmp_path)
    for path in tmp_path.glob("*.negatives.parquet"):
        path.unlink()
    make(tmp_path, maker)
    assert rows(tmp_path) == first


def test_a_local_model_that_finds_no_end_is_cut_off(tmp_path):
    folder = tmp_path / "model"
    local_model(folder, ends=None)
    shards(tmp_path, CAPTIONS[:2])
    with pytest.raises(EndpointError, match=r"was answered \(cut off\)"):
        make(tmp_path, llm(Fake(), model=str(folder), base_url=None, max_tokens=8))


def test_a_local_model_that_is_none_is_named(tmp_path):
    shards(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="is no language model of transformers"):
        make(tmp_path, llm(Fake(), model=str(tmp_path / "empty"), base_url=None))
