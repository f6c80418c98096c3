"""Tokenizers as transformers keeps them, which open_clip reads too."""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from vlm.data.tokenizers import Tokenizer

_CLASS = "PreTrainedTokenizerFast"
_PADDING = ("<pad>", "[PAD]")
_NEW_END = "<|endoftext|>"


def write_tokenizer(tokenizer: Tokenizer, folder: Path, *, padding: int) -> None:
    """Write `tokenizer.json` and what transformers needs beside it.

    Args:
        padding: the id that fills up rows.
    """
    from transformers import PreTrainedTokenizerFast  # takes seconds to import

    inner = _inner(tokenizer)
    inner.no_truncation()
    begin = {} if tokenizer.bot_id is None else {"bos_token": inner.id_to_token(tokenizer.bot_id)}
    made_by: Any = PreTrainedTokenizerFast
    made_by(
        tokenizer_object=inner,
        eos_token=inner.id_to_token(tokenizer.eot_id),
        pad_token=inner.id_to_token(padding),
        model_max_length=tokenizer.context_length,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
        # Names of special tokens that stand in a text are text.
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        **begin,
    ).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    # Versions before 5 do not know the name that 5 writes; both know this one.
    values = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": _CLASS}
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def padding_of(tokenizer: Tokenizer) -> int:
    """An id to fill up rows with, for towers that do not read it."""
    found = (tokenizer.id_of(name) for name in _PADDING)
    return next((token for token in found if token is not None), tokenizer.eot_id)


def with_new_end(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer with a token of its own, the last of all, for the end of text."""
    inner = _inner(tokenizer)
    name = _NEW_END
    while inner.token_to_id(name) is not None:
        name = f"<{name}>"
    inner.add_special_tokens([name])
    begin = [] if tokenizer.bot_id is None else [str(inner.id_to_token(tokenizer.bot_id))]
    inner.post_processor = processors.TemplateProcessing(
        single=" ".join([*begin, "$A", name]),
        special_tokens=[(token, inner.token_to_id(token)) for token in (*begin, name)],
    )
    return Tokenizer(inner, context_length=tokenizer.context_length)


def _inner(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(tokenizer.to_json())
