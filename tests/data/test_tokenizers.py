import copy
import gzip
import pickle
import random
import unicodedata
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as RustTokenizer
from transformers import BertTokenizer

from vlm.data.tokenizers import (
    BpeTokenizerRecipe,
    ClipTokenizerRecipe,
    Tokenizer,
    TransformersTokenizerRecipe,
    clip_bpe,
    from_transformers,
    pad_rows,
    trained_bpe,
)
from vlm.errors import ConfigError, DataError

CAPTIONS = [
    "a red circle left of a blue square",
    "a small green star",
    "左边是一个红色的圆形",
    "蓝色的正方形在绿色的星形下面",
] * 3

MERGES = Path(__file__).parents[3] / "shared/data/zeroshot-assets/bpe_simple_vocab_16e6.txt.gz"
needs_merges = pytest.mark.skipif(
    not MERGES.exists(), reason="CLIP's file of merges is not beside the checkout"
)

# Computed with open_clip_torch 3.3.0 and its tokenizer of ViT-B-32.
CLIP_IDS = {
    "a photo of a cat": [320, 1125, 539, 320, 2368],
    "It’s “quoted” &amp; half-price!": [585, 568, 257, 27706, 257, 261, 2349, 268, 2827, 256],
    "don't   STOP 1234": [847, 713, 1691, 272, 273, 274, 275],
    "你好，世界": [47466, 254, 29290, 377, 267, 19759, 244, 163, 243, 490],
    "😀 café": [7334, 15304],
    "": [],
}


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return trained_bpe(CAPTIONS, vocab_size=330, context_length=32)


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    return clip_bpe(MERGES, context_length=77)


@pytest.mark.parametrize(
    "text",
    [
        *CAPTIONS[:4],
        "it's a 3d café, (12 cats)!",
        "红色 circle 和 12 个 🐈",
        "a \N{HAIR SPACE}  b",
        "한국어 ひら عرب",
        "<pad> <end_of_text>",
        "",
    ],
)
def test_text_comes_back_up_to_normalisation(bpe: Tokenizer, text: str) -> None:
    normalised = " ".join(unicodedata.normalize("NFKC", text).lower().split())
    assert bpe.decode(bpe.encode(text)[:-1]) == normalised


def test_random_characters_come_back_from_a_vocabulary_that_never_saw_them() -> None:
    bpe = trained_bpe(CAPTIONS, vocab_size=259, context_length=2000)
    generator = random.Random(0)
    blocks = [
        (0x20, 0x7E),
        (0xE0, 0xF6),
        (0x3B1, 0x3C1),
        (0x4E00, 0x9FA5),
        (0xAC00, 0xD7A3),
        (0x1F600, 0x1F64F),
    ]
    for _ in range(300):
        letters = [chr(generator.randint(*generator.choice(blocks))) for _ in range(generator.randint(0, 40))]
        text = "".join(generator.choices([*letters, " "], k=len(letters)))
        normalised = " ".join(unicodedata.normalize("NFKC", text).lower().split())
        assert bpe.decode(bpe.encode(text)) == normalised


def test_a_word_is_one_token_wherever_it_stands(bpe: Tokenizer) -> None:
    first, second = bpe.encode("red circle"), bpe.encode("circle red")
    assert sorted(first) == sorted(second)


def test_no_token_joins_chinese_characters() -> None:
    bpe = trained_bpe(["左边是一个红色的圆形"] * 50, vocab_size=400, context_length=32)
    assert len(bpe.encode("左边是红色")) == 2 + 5


def test_training_does_not_depend_on_the_order_of_captions(bpe: Tokenizer, tmp_path: Path) -> None:
    shuffled = random.Random(0).sample(CAPTIONS, len(CAPTIONS))
    trained_bpe(iter(shuffled), vocab_size=330, context_length=32).save(tmp_path / "shuffled.json")
    bpe.save(tmp_path / "bpe.json")
    assert (tmp_path / "shuffled.json").read_bytes() == (tmp_path / "bpe.json").read_bytes()


def test_rows_are_as_wide_as_the_longest_and_padded_with_zero(bpe: Tokenizer) -> None:
    texts = ["a star", "a red circle left of a blue square", ""]
    rows = bpe(texts)
    longest = max(len(bpe.encode(text)) for text in texts)
    assert rows.shape == (3, longest)
    assert rows.dtype == torch.int64
    for row, text in zip(rows.tolist(), texts, strict=True):
        ids = bpe.encode(text)
        assert row == ids + [0] * (longest - len(ids))
        assert (ids[0], ids[-1]) == (bpe.bot_id, bpe.eot_id)


def test_no_texts_are_no_rows(bpe: Tokenizer) -> None:
    assert bpe([]).shape == (0, 0)
    assert pad_rows([[], [3]]).tolist() == [[0], [3]]


def test_a_long_text_is_cut_and_keeps_its_end_of_text(bpe: Tokenizer) -> None:
    short, long = "a star", "a star " * 40
    row = bpe([long])[0]
    assert len(row) == bpe.context_length == 32
    assert row[-1] == bpe.eot_id
    assert row[:-1].tolist() == bpe.encode("a star " * 15)[:31]
    assert bpe.count_truncated([short, long, short]) == 1


def test_a_text_of_exactly_the_context_is_not_counted_as_cut(bpe: Tokenizer) -> None:
    assert len(bpe.encode("星" * 30)) == 32
    assert bpe.count_truncated(["星" * 30, "星" * 31]) == 1


def test_special_tokens_within_a_text_are_plain_characters(bpe: Tokenizer) -> None:
    ids = bpe.encode("<start_of_text> a <end_of_text> b <pad>")[1:-1]
    assert not {0, bpe.bot_id, bpe.eot_id} & set(ids)


@pytest.mark.parametrize("copied", ["saved", "pickled", "deep-copied"])
def test_a_copy_gives_the_same_ids(bpe: Tokenizer, tmp_path: Path, copied: str) -> None:
    if copied == "saved":
        bpe.save(tmp_path / "tokenizer.json")
        again = Tokenizer.load(tmp_path / "tokenizer.json")
    else:
        again = pickle.loads(pickle.dumps(bpe)) if copied == "pickled" else copy.deepcopy(bpe)
    texts = [*CAPTIONS, "a star " * 40, "<pad> <end_of_text>"]
    assert torch.equal(again(texts), bpe(texts))
    names = ("vocab_size", "eot_id", "bot_id", "context_length")
    assert [getattr(again, name) for name in names] == [getattr(bpe, name) for name in names]


def test_the_saved_file_is_a_plain_tokenizers_file(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path / "tokenizer.json")
    plain = RustTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert plain.encode("a star " * 40).ids == bpe.encode("a star " * 40)


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(DataError, match=r"tokenizer\.json is no tokenizer file"):
        Tokenizer.load(path)
    path.write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json is no tokenizer file"):
        Tokenizer.load(path)


def test_a_vocabulary_of_no_captions_is_refused() -> None:
    with pytest.raises(DataError, match="no captions"):
        trained_bpe([], vocab_size=300, context_length=32)


@needs_merges
@pytest.mark.parametrize("text", CLIP_IDS)
def test_clip_ids_equal_those_of_open_clip(clip: Tokenizer, text: str) -> None:
    assert clip.encode(text) == [49406, *CLIP_IDS[text], 49407]


@needs_merges
def test_clip_has_its_vocabulary_and_special_ids(clip: Tokenizer) -> None:
    assert (clip.vocab_size, clip.bot_id, clip.eot_id) == (49408, 49406, 49407)
    assert clip.decode(clip.encode("A red café, 红色")) == "a red café , 红色"


@needs_merges
def test_clip_cuts_like_open_clip(clip: Tokenizer) -> None:
    row = clip(["word " * 100])[0].tolist()
    assert row == [49406] + [2653] * 75 + [49407]


@needs_merges
def test_clip_merges_may_be_plain_text(clip: Tokenizer, tmp_path: Path) -> None:
    plain = tmp_path / "merges.txt"
    plain.write_bytes(gzip.decompress(MERGES.read_bytes()))
    texts = list(CLIP_IDS)
    assert torch.equal(clip_bpe(plain, context_length=77)(texts), clip(texts))


def test_another_file_of_merges_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "merges.txt"
    path.write_text("#version\nt h\n")
    with pytest.raises(ConfigError, match=r"tokenizer\.merges=.* does not hold 48894 merges"):
        clip_bpe(path, context_length=77)


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "red",
        "cat",
        "红",
        "猫",
        "##s",
        "[",
        "]",
        "sep",
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizer(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_transformers_tokenizer_keeps_its_own_special_tokens(bert_folder: Path) -> None:
    tokenizer = from_transformers(bert_folder, context_length=8)
    assert tokenizer.encode("A red cats 红猫") == [2, 5, 6, 7, 10, 8, 9, 3]
    assert (tokenizer.bot_id, tokenizer.eot_id, tokenizer.vocab_size) == (2, 3, 14)
    rows = tokenizer(["a", "red cat cat cat cat cat cat"])
    assert rows.tolist() == [[2, 5, 3, 0, 0, 0, 0, 0], [2, 6, 7, 7, 7, 7, 7, 3]]
    assert tokenizer.encode("[SEP]") == [2, 11, 13, 12, 3]


def test_a_tokenizer_without_end_of_text_is_refused(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path / "tokenizer.json")
    bare = RustTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    bare.post_processor = None
    with pytest.raises(ConfigError, match="no end-of-text token"):
        Tokenizer(bare, context_length=8)


def test_recipes_build_what_they_name(bert_folder: Path) -> None:
    bpe = BpeTokenizerRecipe(vocab_size=300, num_captions=99, context_length=9).build(lambda n: CAPTIONS[:n])
    bert = TransformersTokenizerRecipe(name=str(bert_folder), context_length=9).build(lambda n: [])
    assert (bpe.vocab_size, bpe.context_length) == (300, 9)
    assert (bert.vocab_size, bert.context_length) == (14, 9)


def test_a_recipe_refuses_bad_numbers_before_any_caption_is_read() -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.vocab_size=258 is too small; .* take 259"):
        BpeTokenizerRecipe(vocab_size=258, num_captions=9, context_length=9)
    with pytest.raises(ConfigError, match=r"tokenizer\.context_length=2 leaves no room"):
        BpeTokenizerRecipe(vocab_size=300, num_captions=9, context_length=2)
    with pytest.raises(ConfigError, match=r"tokenizer\.merges='no/such/file' does not exist"):
        ClipTokenizerRecipe(merges="no/such/file", context_length=9)


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"tokenizer\.name='{tmp_path}' has no transformers tokenizer"):
        from_transformers(tmp_path, context_length=8)
