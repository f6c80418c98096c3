"""A language model behind an address that speaks as OpenAI's does."""

import os
import threading
import time
from dataclasses import dataclass
from typing import Any

from vlm.curation.negatives.answers import CUT_OFF, NOTHING_SAID, REFUSED, Messages, NoAnswerError
from vlm.errors import ConfigError, EndpointError

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """Where the model is, and how it is asked.

    Args:
        api_key_env: the environment variable that holds the key. None: the endpoint asks for none.
        timeout_s: seconds for an answer.
        retries: of a question that met no answer, no reply of a model, an error of the server or its limit,
            with growing pauses.
        requests_per_minute: at most, without repeated ones. None: as fast as answers come.
    """

    base_url: str
    model: str
    api_key_env: str | None
    temperature: float
    max_tokens: int
    timeout_s: float
    retries: int
    requests_per_minute: float | None


class Endpoint:
    """Asks an endpoint; any number of threads may.

    Raises:
        ConfigError: the client is not installed, or the key is not set.
    """

    def __init__(self, settings: EndpointSettings) -> None:
        self._settings = settings
        self._openai = _load_client()
        self._pace = Pace(settings.requests_per_minute)
        self._failure: ConfigError | EndpointError | None = None
        self._client = self._openai.OpenAI(
            base_url=settings.base_url,
            api_key=_api_key(settings.api_key_env),
            timeout=settings.timeout_s,
            max_retries=settings.retries,
        )

    def ask(self, messages: Messages) -> str:
        """The answer to the last message.

        Raises:
            NoAnswerError: this question is refused, the answer is cut off, or the reply holds none.
            EndpointError: nothing is answered, after all retries.
            ConfigError: key, address or model are wrong.
        """
        for retry in range(self._settings.retries + 1):
            if retry:  # the client itself repeats what met no reply at all
                time.sleep(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (retry - 1)))
            choice = _first_choice(self._reply(messages))
            if choice is not None:
                return _content(choice)
        self._failure = self._down(
            "its replies hold no choices, as those of OpenAI's do; an address of such an endpoint most often "
            "ends with /v1"
        )
        raise self._failure

    def _reply(self, messages: Messages) -> Any:
        """What comes back, of whatever kind; None where nobody can read it."""
        if self._failure is not None:  # all the others would take as long to fail
            raise self._failure
        self._pace.wait()
        try:
            return self._client.chat.completions.create(
                model=self._settings.model,
                messages=list(messages),
                temperature=self._settings.temperature,
                max_tokens=self._settings.max_tokens,
            )
        except (self._openai.BadRequestError, self._openai.UnprocessableEntityError) as error:
            raise NoAnswerError(REFUSED) from error
        except self._openai.APIStatusError as error:
            self._failure = self._of_status(error)
            raise self._failure from error
        except self._openai.APIConnectionError as error:  # a timeout too
            self._failure = self._down(str(error))
            raise self._failure from error
        except (self._openai.OpenAIError, ValueError):
            return None

    def _of_status(self, error: Any) -> ConfigError | EndpointError:
        if error.status_code in (401, 403):
            return ConfigError(
                f"{self._settings.base_url} refuses the key (status {error.status_code}); "
                f"maker.api_key_env={self._settings.api_key_env} has to name the environment variable that "
                "holds it"
            )
        if error.status_code == 404:
            return ConfigError(
                f"{self._settings.base_url} knows no model {self._settings.model!r} (status 404); correct "
                "maker.model= or maker.base_url=, which most often ends with /v1"
            )
        return self._down(f"status {error.status_code}")

    def _down(self, reason: str) -> EndpointError:
        return EndpointError(
            f"maker.base_url={self._settings.base_url} gave no answer in {self._settings.retries + 1} tries "
            f"of {self._settings.timeout_s:g} s: {reason.rstrip('.')}. What was answered is kept; type the "
            "same command again when it answers, it goes on. Where it is slow, raise maker.timeout_s or "
            "lower maker.concurrency"
        )


class Pace:
    """Lets threads pass so many times a minute."""

    def __init__(self, per_minute: float | None) -> None:
        self._seconds = 60 / per_minute if per_minute else 0.0
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self) -> None:
        """Return when it is this thread's turn."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._seconds
        time.sleep(turn - now)


def _load_client() -> Any:
    try:
        import openai
    except ImportError as error:
        raise ConfigError(
            "maker=llm asks endpoints by the client openai, which is not installed; "
            "pip install -e '.[negatives]'"
        ) from error
    return openai


def _api_key(variable: str | None) -> str:
    if variable is None:
        return "none"
    key = os.environ.get(variable)
    if not key:
        raise ConfigError(
            f"maker.api_key_env={variable}: that environment variable is not set; set it to the key, or use "
            "null for an endpoint without one"
        )
    return key


def _first_choice(reply: Any) -> Any:
    """None where the reply is of something else than a model."""
    try:
        choice = reply.choices[0]
        _ = choice.message.content, choice.finish_reason
    except (AttributeError, IndexError, TypeError, KeyError):
        return None
    return choice


def _content(choice: Any) -> str:
    if choice.finish_reason != "stop":  # what is left of it may read as a whole caption
        raise NoAnswerError(CUT_OFF)
    content = choice.message.content
    if not isinstance(content, str):
        raise NoAnswerError(NOTHING_SAID)
    return content
