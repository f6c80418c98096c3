"""A language model behind an address that speaks as OpenAI's does."""

import os
import threading
import time
from dataclasses import dataclass
from typing import Any

from vlm.curation.negatives.answers import CUT_OFF, Messages, NoAnswerError
from vlm.errors import ConfigError, EndpointError

REFUSED = "refused by the endpoint"
NONSENSE = "no answer in the reply"


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """Where the model is, and how it is asked.

    Args:
        api_key_env: the environment variable that holds the key. None: the endpoint asks for none.
        timeout_s: seconds for an answer.
        retries: of a question that met no answer, an error of the server or its limit, with growing pauses.
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
        if self._failure is not None:  # all the others would take as long to fail
            raise self._failure
        self._pace.wait()
        try:
            reply = self._client.chat.completions.create(
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
        except (self._openai.OpenAIError, ValueError) as error:
            raise NoAnswerError(NONSENSE) from error
        return _content(reply)

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


def _content(reply: Any) -> str:
    try:
        choice = reply.choices[0]
        content, ended_by = choice.message.content, choice.finish_reason
    except (AttributeError, IndexError, TypeError, KeyError) as error:
        raise NoAnswerError(NONSENSE) from error
    if ended_by != "stop":  # what is left of it may read as a whole caption
        raise NoAnswerError(CUT_OFF)
    if not isinstance(content, str):
        raise NoAnswerError(NONSENSE)
    return content
