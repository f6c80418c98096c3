"""Text to token ids: a BPE trained on the captions, CLIP's own BPE, or a `transformers` model's tokenizer.

All three end as one `tokenizers.Tokenizer` that holds its normalisation, its special tokens and the context
length, so that one `tokenizer.json` beside the weights is enough to tokenize as in training.
"""

import gzip
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import tokenizers
import torch
from jaxtyping import Int64
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from vlm.errors import ConfigError, DataError

_SPECIAL_TOKENS = _PAD, _BOT, _EOT = "<pad>", "<start_of_text>", "<end_of_text>"
_NUM_BYTES = 256
_CLIP_MERGES = 48_894  # the file has more: CLIP stopped at a vocabulary of 49,408
_KEY = "tokenizer"

# Han characters stand alone: Chinese has no spaces, and merges across it would make one token of a whole
# phrase of a caption template. Elsewhere a word takes the space before it along, so that nothing is lost.
_WORDS = r"\p{Han}|'(?:s|t|re|ve|m|ll|d)\b| ?[\p{L}\p{M}&&[^\p{Han}]]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s+"
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


class Tokenizer:
    """Lists of texts to rows of token ids, padded on the right with 0.

    Every row ends with `eot_id`, also one that was cut to the context length. What follows it is padding
    that no text tower reads, so 0 may be the id of a word too, as it is in CLIP's vocabulary. Names of
    special tokens within a text are ordinary characters.

    Args:
        tokenizer: adds the special tokens itself, the last of which ends a text.
        context_length: longest row, special tokens included.

    Raises:
        ConfigError: the tokenizer marks no end of text, or the context has no room for a token of it.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, *, context_length: int) -> None:
        # Loader workers are forked after this process has tokenized; Rust's threads would not survive that.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        _require_context(context_length, tokenizer.num_special_tokens_to_add(False))
        tokenizer.no_padding()
        tokenizer.enable_truncation(context_length)
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self.context_length = context_length
        self.bot_id, self.eot_id = _special_ids(tokenizer)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def __call__(self, texts: Sequence[str]) -> Int64[Tensor, "n l"]:
        """Ids of `texts`, as wide as the longest of them."""
        return self.tokenize(texts)[0]

    def tokenize(self, texts: Sequence[str]) -> tuple[Int64[Tensor, "n l"], list[bool]]:
        """Ids of `texts`, and which of them lose their end to the context length."""
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        return pad_rows([one.ids for one in encodings]), [bool(one.overflowing) for one in encodings]

    def encode(self, text: str) -> list[int]:
        """Ids of one text with its special tokens, at most `context_length`."""
        return list(self._tokenizer.encode(text).ids)

    def id_of(self, token: str) -> int | None:
        """The id of a token by its name, special ones included; None where there is no such token."""
        return self._tokenizer.token_to_id(token)

    def with_context_length(self, context_length: int) -> "Tokenizer":
        """The same tokenizer with rows of another length."""
        copy = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        return Tokenizer(copy, context_length=context_length)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids up to their end of text, as far as normalisation kept it."""
        ids = list(ids)
        end = ids.index(self.eot_id) if self.eot_id in ids else len(ids)
        return str(self._tokenizer.decode(ids[:end], skip_special_tokens=True))

    def count_truncated(self, texts: Sequence[str]) -> int:
        """How many of `texts` lose their end to the context length."""
        return sum(self.tokenize(texts)[1])

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before it is cut, special tokens included."""
        return [_uncut_length(encoding) for encoding in self._tokenizer.encode_batch(list(texts))]

    def save(self, path: str | Path) -> None:
        """Write everything to one file, in the format of the `tokenizers` library."""
        # Its own `save` reports a full disk as an Exception of no kind.
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """What `save` writes."""
        return str(self._tokenizer.to_str(pretty=True))

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read what `save` wrote.

        Raises:
            DataError: the file is missing, or no tokenizer with a context length.
        """
        try:
            return cls._from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is no tokenizer file: {error}") from error

    @classmethod
    def _from_json(cls, text: str) -> "Tokenizer":
        try:
            tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing more special
            raise ValueError(str(error)) from error
        if tokenizer.truncation is None:
            raise ValueError("it has no truncation length; write it with Tokenizer.save")
        return cls(tokenizer, context_length=tokenizer.truncation["max_length"])

    def __reduce__(self) -> tuple[Callable[[str], "Tokenizer"], tuple[str]]:
        # Pickled on its own, the wrapped tokenizer would forget that names of special tokens are plain text.
        return type(self)._from_json, (self._tokenizer.to_str(),)


def pad_rows(rows: Sequence[Sequence[int]]) -> Int64[Tensor, "n l"]:
    """Rows of ids as one tensor, as wide as the longest, padded on the right with 0."""
    padded = torch.zeros(len(rows), max(map(len, rows), default=0), dtype=torch.int64)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = torch.tensor(row, dtype=torch.int64)
    return padded


def trained_bpe(captions: Iterable[str], *, vocab_size: int, context_length: int) -> Tokenizer:
    """A byte-level BPE of English, Chinese or anything else, trained on `captions`.

    Text is lower-cased and brought to Unicode NFKC, spaces are collapsed; beyond that `decode` undoes
    `encode`. The result depends on how often captions occur, not on their order. A small corpus may fill
    less than `vocab_size`.

    Raises:
        ConfigError: a vocabulary too small for bytes and special tokens.
        DataError: there are no captions.
    """
    _require_vocabulary(vocab_size)
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            *_single_spaces(),
            # The first word gets the space that it has elsewhere: one token for both places.
            normalizers.Prepend(" "),
            normalizers.Replace(Regex(r"^ (?=\p{Han})"), ""),
        ]
    )
    tokenizer.pre_tokenizer = _split_to_bytes(_WORDS, keep_spaces=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(_SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_not_empty(captions), trainer)
    return Tokenizer(_between_special_tokens(tokenizer), context_length=context_length)


def clip_bpe(merges: str | Path, *, context_length: int) -> Tokenizer:
    """CLIP's BPE of 49,408 tokens, from its file of merges.

    Ids equal those of CLIP for text that needs no repair: quotes, full-width letters, ligatures and HTML
    entities are treated as CLIP's cleaning does, wrongly decoded text ("â€™") is not mended.

    Args:
        merges: `bpe_simple_vocab_16e6.txt`, plain or gzipped.

    Raises:
        ConfigError: the file is missing or not this one.
    """
    pairs = _read_merges(Path(merges))
    symbols = list(_byte_symbols())
    tokens = [*symbols, *(f"{s}</w>" for s in symbols), *("".join(p) for p in pairs), _BOT, _EOT]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=pairs, end_of_word_suffix="</w>"))
    tokenizer.normalizer = _clip_normalizer()
    tokenizer.pre_tokenizer = _split_to_bytes(_CLIP_WORDS, keep_spaces=False)
    # "Ġ" is the byte symbol of a space.
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("</w>", "Ġ"), decoders.ByteLevel(), decoders.Strip(" ", 0, 1)]
    )
    tokenizer.add_special_tokens([_BOT, _EOT])
    return Tokenizer(_between_special_tokens(tokenizer), context_length=context_length)


def from_transformers(name: str | Path, *, context_length: int) -> Tokenizer:
    """The tokenizer of a `transformers` model, with the special tokens that it puts around a text.

    Args:
        name: folder or hub name.

    Raises:
        ConfigError: there is none, it has no Rust implementation, or it marks no end of text.
    """
    from transformers import AutoTokenizer  # takes seconds to import

    try:
        wrapped = AutoTokenizer.from_pretrained(str(name))
    except Exception as error:  # each tokenizer class fails on missing files in its own way
        raise ConfigError(f"{_KEY}.name={str(name)!r} has no transformers tokenizer: {error}") from error
    tokenizer = getattr(wrapped, "backend_tokenizer", None)
    if not isinstance(tokenizer, tokenizers.Tokenizer):
        raise ConfigError(f"{_KEY}.name={str(name)!r} has no fast tokenizer; choose one that has")
    return Tokenizer(tokenizer, context_length=context_length)


def from_json(path: Path, *, context_length: int) -> Tokenizer:
    """The tokenizer in a `tokenizer.json` of the `tokenizers` library.

    Raises:
        ConfigError: the file is unreadable or marks no end of text.
    """
    try:
        tokenizer = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises nothing more special
        raise ConfigError(f"{path} is no tokenizer file: {error}") from error
    return Tokenizer(tokenizer, context_length=context_length)


@runtime_checkable
class TokenizerRecipe(Protocol):
    """What `tokenizer` of the configuration describes; checked when made, before any data is opened."""

    @property
    def context_length(self) -> int:
        """Longest row, special tokens included."""

    def build(self, captions: Callable[[int], Iterable[str]]) -> Tokenizer:
        """Make the tokenizer; `captions(limit)` reads those of the run, for one that is trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BpeTokenizerRecipe:
    """Trains `trained_bpe` on the first `num_captions` captions of the run."""

    vocab_size: int
    num_captions: int
    context_length: int

    def __post_init__(self) -> None:
        _require_vocabulary(self.vocab_size)
        _require_context(self.context_length, 2)
        if self.num_captions < 1:
            raise ConfigError(f"{_KEY}.num_captions={self.num_captions} must be at least 1")

    def build(self, captions: Callable[[int], Iterable[str]]) -> Tokenizer:
        """Read captions and train on them."""
        return trained_bpe(
            captions(self.num_captions), vocab_size=self.vocab_size, context_length=self.context_length
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipTokenizerRecipe:
    """Reads `clip_bpe` from its merges."""

    merges: str
    context_length: int

    def __post_init__(self) -> None:
        _require_file(Path(self.merges))
        _require_context(self.context_length, 2)

    def build(self, captions: Callable[[int], Iterable[str]]) -> Tokenizer:
        """Captions are not read."""
        return clip_bpe(self.merges, context_length=self.context_length)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersTokenizerRecipe:
    """Takes `from_transformers` by folder or hub name."""

    name: str
    context_length: int

    def build(self, captions: Callable[[int], Iterable[str]]) -> Tokenizer:
        """Captions are not read."""
        return from_transformers(self.name, context_length=self.context_length)


def _require_vocabulary(size: int) -> None:
    least = _NUM_BYTES + len(_SPECIAL_TOKENS)
    if size < least:
        raise ConfigError(
            f"{_KEY}.vocab_size={size} is too small; bytes and special tokens alone take {least}"
        )


def _require_context(length: int, num_special: int) -> None:
    if length <= num_special:
        raise ConfigError(
            f"{_KEY}.context_length={length} leaves no room for text beside {num_special} special tokens"
        )


def _require_file(merges: Path) -> None:
    if not merges.is_file():
        raise ConfigError(
            f"{_KEY}.merges={str(merges)!r} does not exist; it names bpe_simple_vocab_16e6.txt(.gz)"
        )


def _special_ids(tokenizer: tokenizers.Tokenizer) -> tuple[int | None, int]:
    """Ids that the tokenizer puts before (None: nothing) and after each text."""
    encoding = tokenizer.encode("a")
    ids, special = encoding.ids, encoding.special_tokens_mask
    if not special[-1] or ids[-1] in ids[:-1]:
        raise ConfigError(
            f"the tokenizer of {_KEY} puts no end-of-text token of its own after a text (ids of 'a': {ids}); "
            "choose one that does"
        )
    return (ids[0] if special[0] and len(ids) > 1 else None), ids[-1]


def _between_special_tokens(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    ids = [(token, tokenizer.token_to_id(token)) for token in (_BOT, _EOT)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{_BOT} $A {_EOT}", special_tokens=ids)
    return tokenizer


def _split_to_bytes(words: str, *, keep_spaces: bool) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(
        Regex(words), "isolated" if keep_spaces else "removed", invert=not keep_spaces
    )
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _single_spaces() -> list[normalizers.Normalizer]:
    return [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]


def _clip_normalizer() -> normalizers.Normalizer:
    """What CLIP's cleaning does to text that was decoded rightly."""
    full_width = {chr(code + 0xFEE0): chr(code) for code in range(ord("!"), ord("~") + 1)}
    quotes = {"[‘’‚‛]": "'", "[“”„‟]": '"'}
    ligatures = {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl"}
    control = {r"[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]": ""}
    entities = {"&(amp;)+": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#0*39;": "'", "&nbsp;": " "}
    replaced = [
        *(normalizers.Replace(old, new) for old, new in (full_width | ligatures).items()),
        *(normalizers.Replace(Regex(old), new) for old, new in (control | entities | quotes).items()),
    ]
    return normalizers.Sequence([*replaced, normalizers.NFC(), *_single_spaces(), normalizers.Lowercase()])


def _byte_symbols() -> Iterator[str]:
    """One printable character a byte, in the order of CLIP's vocabulary, where printable ones come first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    yield from map(chr, printable)
    yield from (chr(_NUM_BYTES + i) for i in range(_NUM_BYTES - len(printable)))


def _read_merges(path: Path) -> list[tuple[str, str]]:
    _require_file(path)
    text = path.read_bytes()
    if path.suffix == ".gz":
        text = gzip.decompress(text)
    rows = [line.split() for line in text.decode("utf-8").splitlines()[1 : 1 + _CLIP_MERGES]]
    if len(rows) != _CLIP_MERGES or any(len(row) != 2 for row in rows):
        raise ConfigError(
            f"{_KEY}.merges={str(path)!r} does not hold {_CLIP_MERGES} merges after its first line; "
            "it should be bpe_simple_vocab_16e6.txt(.gz)"
        )
    return [(left, right) for left, right in rows]


def _uncut_length(encoding: tokenizers.Encoding) -> int:
    rest = sum(part.special_tokens_mask.count(0) for part in encoding.overflowing)
    return len(encoding.ids) + rest


def _not_empty(captions: Iterable[str]) -> Iterator[str]:
    empty = True
    for caption in captions:
        empty = False
        yield caption
    if empty:
        raise DataError(
            "there are no captions to train a tokenizer on; check the captions key of each source"
        )
