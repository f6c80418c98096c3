import itertools
import math
import random
import stat
import sys
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from vlm.evaluation.caption_metrics import bleu, cider_d, rouge_l
from vlm.evaluation.caption_words import words_of
from vlm.evaluation.meteor import NoMeteorError, meteor

# Papineni et al., ACL 2002, examples 1 and 2.
GUIDES = (
    "It is a guide to action that ensures that the military will forever heed Party commands.",
    "It is the guiding principle which guarantees the military forces always being under the command of the "
    "Party.",
    "It is the practical guide for the army always to heed the directions of the party.",
)
FIRST = "It is a guide to action which ensures that the military always obeys the commands of the party."
SECOND = "It is to insure the troops forever hearing the activity guidebook that party direct."
CATS = ("The cat is on the mat.", "There is a cat on the mat.")

# The example of aac-metrics 0.6.0, whose README gives the scores; it follows coco-caption.
SOUNDS = ("a man is speaking", "rain falls")
SOUND_REFERENCES = (
    ("a man speaks.", "someone speaks.", "a man is speaking while a bird is chirping in the background"),
    ("rain is falling hard on a surface",),
)


def english(text: str) -> tuple[str, ...]:
    return words_of(text, language="en")


def corpus(*, seed: int, pictures: int) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Captions of three to twelve of nine words, so that n-grams of every length agree."""
    rng = random.Random(seed)

    def caption() -> list[str]:
        return [rng.choice("abcdefghi") for _ in range(rng.randint(3, 12))]

    references = [[caption() for _ in range(rng.randint(1, 4))] for _ in range(pictures)]
    candidates = [rng.choice(own)[: rng.randint(2, 9)] + caption()[:3] for own in references]
    return candidates, references


def test_bleu_equals_the_worked_examples_of_its_paper() -> None:
    guides = [[english(guide) for guide in GUIDES]]
    assert bleu([english(FIRST)], guides)[:2] == pytest.approx([17 / 18, math.sqrt(17 / 18 * 10 / 17)])
    short = math.exp(1 - 16 / 14)  # the nearest references have 16 words
    assert bleu([english(SECOND)], guides)[:2] == pytest.approx(
        [short * 8 / 14, short * math.sqrt(8 / 14 * 1 / 13)]
    )
    clipped = bleu([english("the the the the the the the.")], [[english(cat) for cat in CATS]])
    assert clipped == pytest.approx([2 / 7, 0.0, 0.0, 0.0])


def test_rouge_equals_the_worked_example_of_its_paper() -> None:
    """Lin 2004, section 3.1: precision and recall are equal there, so that beta does not matter."""
    reference = ["police", "killed", "the", "gunman"]
    assert rouge_l(["police", "kill", "the", "gunman"], [reference]) == pytest.approx(3 / 4)
    assert rouge_l(["the", "gunman", "kill", "police"], [reference]) == pytest.approx(2 / 4)
    assert rouge_l(["the", "gunman", "police", "killed"], [reference]) == pytest.approx(2 / 4)


def test_rouge_takes_precision_and_recall_from_any_reference() -> None:
    """a b c d: all of `a b` (recall 1), and three of its four words in the other (precision 3/4)."""
    score = rouge_l(list("abcd"), [list("ab"), list("abcxyz")])
    assert score == pytest.approx((1 + 1.44) * 0.75 * 1 / (1 + 1.44 * 0.75))


def test_scores_equal_the_published_example_of_aac_metrics() -> None:
    candidates = [english(text) for text in SOUNDS]
    references = [[english(text) for text in own] for own in SOUND_REFERENCES]
    scores = cider_d(candidates, references)
    assert scores == pytest.approx([1.3641, 0.5587], abs=5e-5)
    assert fmean(scores) == pytest.approx(0.9614, abs=5e-5)
    assert bleu(candidates, references)[0] == pytest.approx(0.4278, abs=5e-5)


def test_cider_by_hand() -> None:
    """Both pictures have `a`, whose weight is log 2/2 = 0; `b` and `a b` weigh log 2 and are found."""
    assert cider_d([["a", "b"], ["a", "b"]], [[["a", "b"]], [["a", "c"]]]) == pytest.approx([5.0, 0.0])
    # b b: of 2 log 2 no more than the wanted log 2 counts, and the cosine of the single words is 1/2
    assert cider_d([["b", "b"], ["c"]], [[["a", "b"]], [["a", "c"]]])[0] == pytest.approx(10 / 4 / 2)


def slow_cider(candidates: list[list[str]], references: list[list[list[str]]]) -> list[float]:
    """arXiv:1411.5726, equations 1 to 5, by vectors over every n-gram there is."""

    def grams(words: list[str], n: int) -> list[str]:
        return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]

    totals = np.zeros(len(candidates))
    for n in range(1, 5):
        everything = sorted(
            {gram for text in [*candidates, *itertools.chain(*references)] for gram in grams(text, n)}
        )
        having = [sum(any(g in grams(ref, n) for ref in own) for own in references) for g in everything]
        idf = np.log(len(references) / np.maximum(1, having))

        def vector(words: list[str], n: int = n, everything: list[str] = everything, idf=idf) -> np.ndarray:
            return np.array([grams(words, n).count(gram) for gram in everything]) * idf

        for picture, (words, own) in enumerate(zip(candidates, references, strict=True)):
            for ref in own:
                c, s = vector(words), vector(ref)
                norm = np.linalg.norm(c) * np.linalg.norm(s)
                penalty = math.exp(-((len(words) - len(ref)) ** 2) / 72)
                totals[picture] += norm and 10 * penalty * np.minimum(c, s) @ s / norm / len(own) / 4
    return totals.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_cider_equals_slow_vectors(seed: int) -> None:
    candidates, references = corpus(seed=seed, pictures=7)
    assert cider_d(candidates, references) == pytest.approx(slow_cider(candidates, references))


def slow_common(first: list[str], second: list[str]) -> int:
    if not first or not second:
        return 0
    if first[-1] == second[-1]:
        return 1 + slow_common(first[:-1], second[:-1])
    return max(slow_common(first[:-1], second), slow_common(first, second[:-1]))


def test_rouge_equals_slow_subsequences() -> None:
    rng = random.Random(0)
    for _ in range(30):
        candidate, reference = ([rng.choice("abc") for _ in range(rng.randint(1, 6))] for _ in range(2))
        common = slow_common(candidate, reference)
        precision, recall = common / len(candidate), common / len(reference)
        wanted = 2.44 * precision * recall / (recall + 1.44 * precision) if common else 0.0
        assert rouge_l(candidate, [reference]) == pytest.approx(wanted)


def test_an_empty_caption_scores_nothing_and_breaks_nothing() -> None:
    assert bleu([[]], [[["a", "b"]]]) == [0.0] * 4
    assert rouge_l([], [["a", "b"]]) == 0.0
    assert rouge_l(["a"], [[]]) == 0.0
    assert cider_d([[], ["a"]], [[["a", "b"]], [["c"]]])[0] == 0.0


def test_the_very_references_score_all_there_is() -> None:
    references = [[list("abcd"), list("abcde")], [list("fghi")]]
    same = [own[0] for own in references]
    assert bleu(same, references) == pytest.approx([1.0] * 4)
    assert [rouge_l(words, own) for words, own in zip(same, references, strict=True)] == [1.0, 1.0]
    assert cider_d(same, [[words] for words in same]) == pytest.approx([10.0, 10.0])


def test_captions_that_all_pictures_share_have_no_weight_in_cider() -> None:
    assert cider_d([list("abcd")] * 2, [[list("abcd")]] * 2) == [0.0, 0.0]
    assert cider_d([list("abcd")], [[list("abcd")]]) == [0.0]  # a single picture shares all with itself


def test_captions_too_short_for_an_n_gram_have_none() -> None:
    assert bleu([["a", "b"]], [[["a", "b"]]]) == pytest.approx([1.0, 1.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man's dog, it DOESN'T sit.", "a man 's dog it does n't sit"),
        ("a black-and-white photo: 10:30, 3,000 and 2.5!", "a black-and-white photo 10:30 3,000 and 2.5"),
        ('Mr. Smith\'s U.S. flag... "cannot" (see)', "mr. smith 's u.s. flag can not see"),
        ("the dogs' o'clock 'single' man’s t-shirt", "the dogs o'clock single man 's t-shirt"),
        ("$5 & 50% café", "$ 5 & 50 % café"),
        ("  ", ""),
    ],
)
def test_english_words_are_those_of_the_treebank_without_punctuation(caption: str, words: str) -> None:
    assert " ".join(english(caption)) == words


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("红色的正方形。", "红 色 的 正 方 形"),
        ("一件T恤，价格３.５元（iPhone 15 Pro）!", "一 件 t 恤 价 格 3.5 元 iphone 15 pro"),
        ("𠮷野家", "𠮷 野 家"),
    ],
)
def test_chinese_words_are_characters_and_latin_words_stay_whole(caption: str, words: str) -> None:
    assert " ".join(words_of(caption, language="zh")) == words


PROGRAM = """#!{python}
import sys
for line in sys.stdin:
    kind, *parts = line.rstrip("\\n").split(" ||| ")
    if kind == "SCORE":
        print(len(parts) - 1, len(parts[-1].split()))  # references, words of the caption
    else:
        print("\\n".join(["0.5"] * len(parts)), sum(float(part.split()[1]) for part in parts), sep="\\n")
"""


@pytest.fixture
def no_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package pycocoevalcap with an empty program, and a PATH without Java."""
    folder = tmp_path / "packages" / "pycocoevalcap" / "meteor"
    folder.mkdir(parents=True)
    (folder / "meteor-1.5.jar").touch()
    (tmp_path / "bin").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin" / "java"


def place(program: Path, text: str) -> None:
    program.write_text(text)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_meteor_is_the_last_number_of_its_program(no_java: Path) -> None:
    place(no_java, PROGRAM.format(python=sys.executable))
    assert meteor([["a", "b"], ["c"]], [[["a"], ["b"]], [["d"]]]) == 3.0


def test_meteor_says_what_it_needs(no_java: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoMeteorError, match=r"left out: it needs Java"):
        meteor([["a"]], [[["a"]]])
    place(no_java, "#!/bin/sh\necho no memory >&2\nexit 1\n")
    with pytest.raises(NoMeteorError, match="its program failed with 1: no memory"):
        meteor([["a"]], [[["a"]]])
    place(no_java, "#!/bin/sh\n/bin/cat\n")
    with pytest.raises(NoMeteorError, match="its program answers"):
        meteor([["a"]], [[["a"]]])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NoMeteorError, match=r"needs pycocoevalcap \(pip install pycocoevalcap\) and Java"):
        meteor([["a"]], [[["a"]]])


def installed_scores(candidates, references) -> dict[str, float]:
    """Of pycocoevalcap, on words that are split already."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    wanted = {row: [" ".join(words) for words in own] for row, own in enumerate(references)}
    found = {row: [" ".join(words)] for row, words in enumerate(candidates)}
    return {
        "bleu": Bleu(4).compute_score(wanted, found, verbose=0)[0],
        "rouge": float(Rouge().compute_score(wanted, found)[0]),
        "cider": Cider().compute_score(wanted, found)[1].tolist(),
    }


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_those_of_pycocoevalcap(seed: int) -> None:
    pytest.importorskip("pycocoevalcap.bleu.bleu", reason="pycocoevalcap is not installed")
    candidates, references = corpus(seed=seed, pictures=40)
    installed = installed_scores(candidates, references)
    assert bleu(candidates, references) == pytest.approx(installed["bleu"], rel=1e-7)
    assert fmean(map(rouge_l, candidates, references)) == pytest.approx(installed["rouge"])
    assert cider_d(candidates, references) == pytest.approx(installed["cider"])


def test_meteor_equals_that_of_pycocoevalcap() -> None:
    module = pytest.importorskip("pycocoevalcap.meteor.meteor", reason="pycocoevalcap is not installed")
    candidates = [english(text) for text in (*SOUNDS, "")]
    references = [[english(text) for text in own] for own in (*SOUND_REFERENCES, ("a dog barks",))]
    try:
        found = meteor(candidates, references)
    except NoMeteorError as error:
        pytest.skip(str(error))
    wanted = {row: [" ".join(words) for words in own] for row, own in enumerate(references)}
    program = module.Meteor()
    score, _ = program.compute_score(wanted, {row: [" ".join(words)] for row, words in enumerate(candidates)})
    assert found == pytest.approx(score)
