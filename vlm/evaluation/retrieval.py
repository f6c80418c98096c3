"""Retrieval between images and captions, both ways."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from vlm.errors import ConfigError, DataError
from vlm.evaluation.evaluator import Result, parts, records_of, spread
from vlm.evaluation.fields import every_caption, label_of
from vlm.evaluation.labelled import numbered
from vlm.evaluation.outcomes import Outcomes, outcomes
from vlm.evaluation.ranking import Relevant, chance_of_hit, rank_relevant, top_matches
from vlm.evaluation.truncation import embedded
from vlm.inference import Embedder, Pictures

RECALLS = (1, 5, 10)
NUM_QUERIES = 6
NUM_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pairs:
    """m captions, n pictures, and which belong together."""

    captions: list[str]
    owner: Int64[Tensor, " m"]
    """Of each caption, the first picture that has it."""
    pictures: Int64[Tensor, " q"]
    """Those that search: all with a caption to find."""
    of_captions: Relevant
    """Pictures to be found by each caption."""
    of_pictures: Relevant
    """Captions to be found by each of the pictures that search."""


class Retrieval:
    """Recall of the right caption of an image, and of the right image of a caption.

    A picture whose field of captions holds an empty list is there to be found wrongly alone.

    Args:
        shards: the data set.
        captions: fields of a sample that hold its captions: a text, a text with one caption a line, or a list
            of texts. Every caption counts.
        relevance: field by which a caption and an image belong together, such as `json.concept`; None where
            a caption belongs to its own image alone.
        merge_captions: equal captions are one query, which belongs to every image that has it.

    Raises:
        ConfigError: both `relevance` and `merge_captions` are set.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"text"})

    def __init__(
        self,
        shards: Pictures,
        captions: str | Sequence[str],
        *,
        relevance: str | None,
        merge_captions: bool = False,
    ) -> None:
        if relevance is not None and merge_captions:
            raise ConfigError(f"relevance={relevance} and merge_captions=true exclude each other; drop one")
        self.shards = shards
        self.captions = [captions] if isinstance(captions, str) else list(captions)
        self.relevance = relevance
        self.merge_captions = merge_captions

    def check(self) -> None:
        self._pairs(records_of(self.shards))

    def __call__(self, embedder: Embedder) -> Result:
        images = embedder.images(self.shards)
        pairs = self._pairs(images.records)
        texts, truncated = embedded(pairs.captions, embedder, what="captions")
        features = images.features
        searching = features if len(pairs.pictures) == len(features) else features[pairs.pictures]
        own = _first_captions(pairs, len(features))
        of_pictures = [own[row] for row in pairs.pictures.tolist()]
        by_text = _Search(texts, features, pairs.of_captions, pairs.captions, own)
        by_image = _Search(searching, texts, pairs.of_pictures, of_pictures, pairs.captions)
        images_found = by_text.examples(torch.arange(len(texts)))
        captions_found = by_image.examples(pairs.pictures)
        shown = {item["position"] for query in images_found for item in query["found"]}
        return Result(
            task="zeroshot_retrieval",
            metrics=retrieval_metrics("image", by_text.ranks) | retrieval_metrics("text", by_image.ranks),
            chance=retrieval_chance("image", pairs.of_captions.counts, num_items=len(features))
            | retrieval_chance("text", pairs.of_pictures.counts, num_items=len(texts)),
            num_samples=len(images.records),
            notes={"truncated": truncated},
            details={
                "shards": parts(self.shards),
                "num_captions": len(pairs.captions),
                "images_found": images_found,
                "captions_found": captions_found,
                "pictures": sorted(shown | {query["position"] for query in captions_found}),
            },
            outcomes=(
                _outcomes("caption", "image", by_text, picture=pairs.owner, asked=pairs.captions),
                _outcomes("picture", "text", by_image, picture=pairs.pictures),
            ),
        )

    def _pairs(self, records: list[dict[str, Any]]) -> _Pairs:
        captions: list[str] = []
        caption: list[int] = []
        picture: list[int] = []
        place: dict[str, int] = {}
        for position, record in enumerate(records):
            own = every_caption(record, self.captions, or_none=True)
            for text in dict.fromkeys(own) if self.merge_captions else own:
                number = place.setdefault(text, len(captions)) if self.merge_captions else len(captions)
                if number == len(captions):
                    captions.append(text)
                caption.append(number)
                picture.append(position)
        if not captions:
            raise DataError(f"no sample of {self.shards} has a caption in {self.captions}; set `captions`")
        owner = torch.full((len(captions),), len(records))
        owner = owner.scatter_reduce(0, torch.tensor(caption), torch.tensor(picture), "amin")
        return self._related(captions, owner, torch.tensor(caption), torch.tensor(picture), records)

    def _related(
        self,
        captions: list[str],
        owner: Tensor,
        caption: Tensor,
        picture: Tensor,
        records: list[dict[str, Any]],
    ) -> _Pairs:
        if self.relevance is None:
            pictures = torch.unique(picture)
            of_captions = Relevant.of_pairs(caption, picture, num_queries=len(captions))
            query = torch.searchsorted(pictures, picture)
            of_pictures = Relevant.of_pairs(query, caption, num_queries=len(pictures))
        else:
            values = [label_of(record, self.relevance) for record in records]
            number = numbered(values)
            picture_group = torch.tensor([number[value] for value in values])
            caption_group = picture_group[owner]
            pictures = torch.isin(picture_group, caption_group).nonzero().flatten()
            of_captions = Relevant.of_groups(caption_group, picture_group)
            of_pictures = Relevant.of_groups(picture_group[pictures], caption_group)
        return _Pairs(
            captions=captions,
            owner=owner,
            pictures=pictures,
            of_captions=of_captions,
            of_pictures=of_pictures,
        )


def _first_captions(pairs: _Pairs, num_pictures: int) -> list[str]:
    """Of each picture, to show; empty where it has none."""
    found = [""] * num_pictures
    for caption, owner in zip(reversed(pairs.captions), pairs.owner.flip(0).tolist(), strict=True):
        found[owner] = caption
    return found


class _Search:
    """Every query against the whole gallery; each row of either has a caption to show."""

    def __init__(
        self,
        queries: Tensor,
        gallery: Tensor,
        relevant: Relevant,
        query_captions: list[str],
        gallery_captions: list[str],
    ) -> None:
        self.queries, self.gallery, self.relevant = queries, gallery, relevant
        self.query_captions, self.gallery_captions = query_captions, gallery_captions
        ranking = rank_relevant(queries, gallery, relevant)
        self.ranks = ranking.rank
        self.first = torch.where(ranking.rank == 1, ranking.best, ranking.rival)
        """Of each query, the item that was found."""

    def examples(self, position: Int64[Tensor, " n"]) -> list[dict[str, Any]]:
        """A few queries, each with the items found first for it.

        Args:
            position: of each query in its data set.
        """
        chosen = spread(len(self.queries), wanted=NUM_QUERIES)
        scores, found = top_matches(self.queries[chosen], self.gallery, k=NUM_SHOWN)
        return [
            {
                "position": int(position[query]),
                "caption": self.query_captions[query],
                "rank": int(self.ranks[query]),
                "found": self._shown(query, items, item_scores),
            }
            for query, items, item_scores in zip(chosen, found.tolist(), scores.tolist(), strict=True)
        ]

    def _shown(self, query: int, items: list[int], item_scores: list[float]) -> list[dict[str, Any]]:
        relevant = set(self.relevant.listed(slice(query, query + 1))[0].flatten().tolist())
        return [
            {
                "position": item,
                "caption": self.gallery_captions[item],
                "score": score,
                "relevant": item in relevant,
            }
            for item, score in zip(items, item_scores, strict=True)
        ]


def _outcomes(
    query: str, found: str, search: _Search, *, picture: Tensor, asked: list[str] | None = None
) -> Outcomes:
    """What was found first, by its caption."""
    recalls = {f"{found}_retrieval_recall@{k}": search.ranks <= k for k in RECALLS}
    return outcomes(
        query,
        recalls | {f"{found}_retrieval_mean_rank": search.ranks},
        picture=picture,
        answer=[search.gallery_captions[item] for item in search.first.tolist()],
        asked=asked,
    )


def retrieval_metrics(found: str, rank: Int64[Tensor, " n"]) -> dict[str, float]:
    """Recalls, mean and median rank where `found` ("image" or "text") is what the gallery holds.

    The median of an even number of ranks is the mean of the two in the middle.
    """
    ranks = rank.double()
    metrics = {f"{found}_retrieval_recall@{k}": (rank <= k).double().mean().item() for k in RECALLS}
    metrics[f"{found}_retrieval_mean_rank"] = ranks.mean().item()
    metrics[f"{found}_retrieval_median_rank"] = float(np.median(ranks.numpy()))
    return metrics


def retrieval_chance(found: str, relevant: Int64[Tensor, " n"], *, num_items: int) -> dict[str, float]:
    """What a shuffled gallery gets in the recalls and the mean rank of `retrieval_metrics`.

    Args:
        relevant: of the items, how many each query may find.
    """
    chance = {
        f"{found}_retrieval_recall@{k}": chance_of_hit(relevant, num_items=num_items, k=k) for k in RECALLS
    }
    chance[f"{found}_retrieval_mean_rank"] = ((num_items + 1) / (relevant.double() + 1)).mean().item()
    return chance
