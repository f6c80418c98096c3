"""A language model of transformers, in this process: one question after another, without chance."""

import threading
from typing import Any

import torch

from vlm.curation.negatives.answers import CUT_OFF, Messages, NoAnswerError
from vlm.errors import ConfigError


class LocalModel:
    """Answers by the most likely words.

    Args:
        name: a folder, or a name of the Hugging Face hub.
        max_tokens: of an answer.

    Raises:
        ConfigError: it is no such model.
    """

    def __init__(self, name: str, *, max_tokens: int) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name)
            model: Any = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
        except (OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"maker.model={name} is no language model of transformers: {reason}; name a folder or a "
                "model of the hub, or set maker.base_url= for one behind an address"
            ) from error
        self._model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        ends = self._model.generation_config.eos_token_id
        self._ends = frozenset(ends if isinstance(ends, list) else [ends])
        self._max_tokens = max_tokens
        self._lock = threading.Lock()

    def ask(self, messages: Messages) -> str:
        """The answer to the last message.

        Raises:
            NoAnswerError: it is longer than `max_tokens`.
        """
        tokens = self._tokenizer(self._prompt(messages), return_tensors="pt", add_special_tokens=False)
        with self._lock, torch.inference_mode():
            written = self._model.generate(
                **tokens.to(self._model.device), max_new_tokens=self._max_tokens, do_sample=False
            )
        answer = written[0, tokens["input_ids"].shape[1] :]
        if len(answer) == self._max_tokens and int(answer[-1]) not in self._ends:
            raise NoAnswerError(CUT_OFF)
        return str(self._tokenizer.decode(answer, skip_special_tokens=True))

    def _prompt(self, messages: Messages) -> str:
        """As the model was trained to read it; the bare texts where it was not."""
        if self._tokenizer.chat_template:
            return str(
                self._tokenizer.apply_chat_template(
                    list(map(dict, messages)), tokenize=False, add_generation_prompt=True
                )
            )
        return "\n".join(message["content"] for message in messages) + "\n"
