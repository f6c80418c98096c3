"""`maker=llm`: a language model rewrites captions, by a task and five examples for each rule.

Source: arXiv:2504.16801, hard negatives.
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from vlm.curation.negatives.answers import ANSWERS, Answers, Messages, NoAnswerError, Streak
from vlm.curation.negatives.endpoint import Endpoint, EndpointSettings
from vlm.curation.negatives.filters import Candidate
from vlm.curation.negatives.maker import Corpus, Maker, ReadyMaker, caption_rng
from vlm.curation.negatives.phrases import script_of
from vlm.curation.negatives.rules import RULES
from vlm.curation.negatives.word_lists import Language
from vlm.errors import ConfigError

EMPTY = "empty answer"
SEVERAL_LINES = "answer of several lines"
OTHER_LANGUAGE = "answer in another language"
UNENDED_THOUGHTS = "thoughts without an end"
PREAMBLE = "answer with a preamble"
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
# What introduces a rewritten caption; the colon of a time is none.
_INTRODUCED = re.compile(
    r"((sure|certainly|of course|here is|here['’]s|rewritten)\b|好的|当然|以下|这是|改写|修改后)"
    r".*[:\uff1a](?!\d)",
    re.IGNORECASE,
)
_QUOTES = "\"'“”‘’「」`"


@dataclass(frozen=True, kw_only=True)
class Llm(Maker):
    """Makes negatives by a language model.

    Args:
        model: as the endpoint calls it; without one a folder or a name of the Hugging Face hub.
        base_url: of an endpoint that speaks as OpenAI's does. None: the model runs here, by transformers.
        rules: names of the tasks.
        concurrency: samples that are asked about at once; with an endpoint.

    Raises:
        ConfigError: there is no such rule, or a number is out of range.
    """

    model: str
    base_url: str | None
    api_key_env: str | None
    rules: Sequence[str]
    temperature: float
    max_tokens: int
    concurrency: int
    requests_per_minute: float | None
    timeout_s: float
    retries: int

    def __post_init__(self) -> None:
        if not self.rules or not set(self.rules) <= set(RULES):
            raise ConfigError(f"maker.rules={list(self.rules)} has to name some of {', '.join(RULES)}")
        for name, least in (("max_tokens", 1), ("concurrency", 1), ("retries", 0), ("temperature", 0)):
            if not getattr(self, name) >= least:
                raise ConfigError(f"maker.{name}={getattr(self, name)} must be at least {least}")
        for name in ("timeout_s", "requests_per_minute"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"maker.{name}={value} must be above 0")

    @property
    def name(self) -> str:
        """As it is written into sidecars."""
        return "llm"

    def ready(self, corpus: Corpus) -> "ReadyLlm":
        """Load the model, or reach for the endpoint.

        Raises:
            ConfigError: what is needed is not installed or not set.
        """
        answers = Answers(corpus.folder / ANSWERS, settings=self._drawn_by)
        return ReadyLlm(
            maker=self, corpus=corpus, answers=answers, answerer=self._answerer(), streak=Streak(self.model)
        )

    def _answerer(self) -> Any:
        if self.base_url is None:
            from vlm.curation.negatives.local_model import LocalModel  # imports torch

            return LocalModel(self.model, max_tokens=self.max_tokens)
        return Endpoint(
            EndpointSettings(
                base_url=self.base_url,
                model=self.model,
                api_key_env=self.api_key_env,
                temperature=self.temperature,
                max_tokens=self.max_tokens,
                timeout_s=self.timeout_s,
                retries=self.retries,
                requests_per_minute=self.requests_per_minute,
            )
        )

    @property
    def _drawn_by(self) -> dict[str, Any]:
        """What answers depend on; where the model runs is not among it."""
        temperature = None if self.base_url is None else self.temperature
        return {"model": self.model, "temperature": temperature, "max_tokens": self.max_tokens}

    @property
    def identity(self) -> dict[str, Any]:
        """What its negatives depend on."""
        prompts = [messages("", rule, language) for rule in self.rules for language in ("en", "zh")]
        digest = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
        return self._drawn_by | {"rules": list(self.rules), "prompts": digest}


@dataclass(frozen=True, kw_only=True)
class ReadyLlm(ReadyMaker):
    """A language model that can be asked."""

    maker: Llm
    corpus: Corpus
    answers: Answers
    answerer: Any
    streak: Streak

    @property
    def identity(self) -> dict[str, Any]:
        """What its negatives depend on."""
        return self.maker.identity

    @property
    def threads(self) -> int:
        """Threads wait for an endpoint; a local model takes one question at a time."""
        return 1 if self.maker.base_url is None else self.maker.concurrency

    def candidates(self, captions: Sequence[str], *, seed: int) -> Sequence[Iterator[Candidate]]:
        """Each rule once, in an order that the caption draws."""
        return [self._of(caption, seed) for caption in captions]

    def _of(self, caption: str, seed: int) -> Iterator[Candidate]:
        language = self.corpus.language_of(caption)
        for rule in caption_rng(seed, caption).sample(list(self.maker.rules), len(self.maker.rules)):
            try:
                answer = self._ask(messages(caption, rule, language))
            except NoAnswerError as error:
                yield Candidate(rule, cause=str(error))
                continue
            yield read_answer(answer, rule, language)

    def _ask(self, question: Messages) -> str:
        known = self.answers.get(question)
        if known is not None:
            return known
        try:
            answer: str = self.answerer.ask(question)
        except NoAnswerError as error:
            self.streak.go_on(error)
            raise
        self.streak.end()
        self.answers.put(question, answer)
        return answer


def messages(caption: str, rule: str, language: Language) -> list[dict[str, str]]:
    """The task, its examples as if they had been asked and answered, and the caption."""
    prompt = _prompt(rule, language)
    asked = [{"role": "system", "content": str(prompt["task"])}]
    for example in prompt["examples"]:
        asked += [_said("user", example["caption"]), _said("assistant", example["negative"])]
    return [*asked, _said("user", caption)]


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@functools.cache
def _prompt(rule: str, language: Language) -> Mapping[str, Any]:
    path = files("vlm.curation.negatives").joinpath("prompts", language, f"{rule}.yaml")
    prompt: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return prompt


def read_answer(answer: str, rule: str, language: Language) -> Candidate:
    """The rewritten caption in an answer, or why there is none."""
    said = _THOUGHTS.sub("", answer)
    if "<think>" in said:
        return Candidate(rule, cause=UNENDED_THOUGHTS)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if not lines:
        return Candidate(rule, cause=EMPTY)
    if len(lines) > 1:
        return Candidate(rule, cause=SEVERAL_LINES)
    text = lines[0].strip(_QUOTES)
    if not text:
        return Candidate(rule, cause=EMPTY)
    if _INTRODUCED.match(text):
        return Candidate(rule, cause=PREAMBLE)
    if script_of(text) != language:
        return Candidate(rule, cause=OTHER_LANGUAGE)
    return Candidate(rule, text)
