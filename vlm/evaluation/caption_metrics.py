"""BLEU, ROUGE-L and CIDEr-D of captions, as the evaluation server of COCO computes them.

Source: arXiv:1504.00325, section 3.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

Words = Sequence[str]
Gram = tuple[str, ...]

MAX_ORDER = 4
"""Words of the longest n-grams that are compared."""
_ROUGE_BETA = 1.2
_CIDER_SIGMA = 6.0
_CIDER_SCALE = 10.0


def bleu(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """BLEU-1 to BLEU-4 of a corpus.

    The reference length of a candidate is the nearest of its references, of two the shorter. Where no n-gram
    of a length agrees, or the candidates are too short to have one, the score is 0; coco-caption gives the
    second case a number that depends on the rounding constants in it.

    Source: Papineni et al., ACL 2002, section 2.3.
    """
    matched, offered = [0] * MAX_ORDER, [0] * MAX_ORDER
    length = reference_length = 0
    for words, own in zip(candidates, references, strict=True):
        length += len(words)
        reference_length += min((abs(len(ref) - len(words)), len(ref)) for ref in own)[1]
        most: Counter[Gram] = Counter()
        for ref in own:
            most |= _grams(ref)
        counts = _grams(words)
        for gram, count in counts.items():
            offered[len(gram) - 1] += count
        for gram, count in (counts & most).items():
            matched[len(gram) - 1] += count
    brevity = min(1.0, math.exp(1 - reference_length / length)) if length else 0.0
    scores: list[float] = []
    product = 1.0
    for order in range(MAX_ORDER):
        product *= matched[order] / offered[order] if offered[order] else 0.0
        scores.append(brevity * product ** (1 / (order + 1)))
    return scores


def rouge_l(candidate: Words, references: Sequence[Words]) -> float:
    """The F-score of the longest common subsequence, recall counting 1.2² times as much as precision.

    Precision and recall are each the best over the references, and may come from two of them.

    Source: Lin, "ROUGE: a package for automatic evaluation of summaries", 2004, section 3.1.
    """
    common = [(_common(candidate, ref), len(ref)) for ref in references]
    precision = max(length / max(1, len(candidate)) for length, _ in common)
    recall = max(length / max(1, of) for length, of in common)
    if precision == 0:
        return 0.0
    weight = _ROUGE_BETA**2
    return (1 + weight) * precision * recall / (recall + weight * precision)


def cider_d(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D of each picture's caption, from 0 to 10; the mean over pictures is the score of a corpus.

    N-grams weigh by how few pictures have them in their references. With a single picture every weight is
    log 1 = 0, and so is the score.

    Source: arXiv:1411.5726, section 5. As in coco-caption, words are not stemmed.
    """
    grams = [[_grams(ref) for ref in own] for own in references]
    pictures_with = Counter(gram for own in grams for gram in set().union(*own))
    log_pictures = math.log(len(references))
    weigh = {gram: log_pictures - math.log(count) for gram, count in pictures_with.items()}

    def vector(counts: Counter[Gram]) -> dict[Gram, float]:
        return {gram: count * weigh.get(gram, log_pictures) for gram, count in counts.items()}

    scores: list[float] = []
    for words, own, own_grams in zip(candidates, references, grams, strict=True):
        found = vector(_grams(words))
        likeness = [
            _likeness(found, vector(counts)) * _same_length(len(words) - len(ref))
            for ref, counts in zip(own, own_grams, strict=True)
        ]
        scores.append(_CIDER_SCALE * sum(likeness) / len(likeness))
    return scores


def _same_length(difference: int) -> float:
    return math.exp(-(difference**2) / (2 * _CIDER_SIGMA**2))


def _likeness(found: dict[Gram, float], wanted: dict[Gram, float]) -> float:
    """The cosine of the n-grams of each length, averaged; no n-gram counts oftener than it is wanted."""
    product = [0.0] * MAX_ORDER
    for gram, weight in found.items():
        other = wanted.get(gram, 0.0)
        product[len(gram) - 1] += min(weight, other) * other
    norms = zip(_norms(found), _norms(wanted), strict=True)
    cosines = [dot / (a * b) if a and b else 0.0 for dot, (a, b) in zip(product, norms, strict=True)]
    return sum(cosines) / MAX_ORDER


def _norms(vector: dict[Gram, float]) -> Iterator[float]:
    squares = [0.0] * MAX_ORDER
    for gram, weight in vector.items():
        squares[len(gram) - 1] += weight**2
    yield from map(math.sqrt, squares)


def _grams(words: Words) -> Counter[Gram]:
    """How often each n-gram of one to four words occurs."""
    return Counter(
        tuple(words[start : start + order])
        for order in range(1, MAX_ORDER + 1)
        for start in range(len(words) - order + 1)
    )


def _common(first: Words, second: Words) -> int:
    """The length of the longest common subsequence."""
    best = [0] * (len(second) + 1)
    for word in first:
        before = best
        best = [0]
        for place, other in enumerate(second):
            best.append(before[place] + 1 if word == other else max(before[place + 1], best[place]))
    return best[-1]
