import itertools

import pytest
import torch

from vlm.evaluation import ranking
from vlm.evaluation.ranking import Relevant, chance_of_hit, group_sizes, rank_relevant, scores, top_matches


def tied_features(rows: int, *, seed: int, dim: int = 3) -> torch.Tensor:
    """Small whole numbers: many exact ties."""
    return torch.randint(-1, 2, (rows, dim), generator=torch.Generator().manual_seed(seed)).float()


def slow_rank(query: torch.Tensor, gallery: torch.Tensor, relevant: list[bool]) -> int:
    values = [sum(float(a) * float(b) for a, b in zip(query, item, strict=True)) for item in gallery]
    best = max(value for value, is_relevant in zip(values, relevant, strict=True) if is_relevant)
    before = [value for value, good in zip(values, relevant, strict=True) if not good and value >= best]
    return 1 + len(before)


@pytest.mark.parametrize("seed", range(5))
def test_rank_equals_a_slow_count_with_ties(seed: int) -> None:
    queries, gallery = tied_features(20, seed=seed), tied_features(30, seed=seed + 100)
    query_group, gallery_group = torch.arange(20) % 6, torch.arange(30) % 6
    found = rank_relevant(queries, gallery, Relevant.of_groups(query_group, gallery_group))
    expected = [
        slow_rank(query, gallery, [int(g) == int(group) for g in gallery_group])
        for query, group in zip(queries, query_group, strict=True)
    ]
    assert found.rank.tolist() == expected


def test_best_is_relevant_and_rival_is_not() -> None:
    queries, gallery = torch.randn(9, 4), torch.randn(12, 4)
    query_group, gallery_group = torch.arange(9) % 3, torch.arange(12) % 3
    found = rank_relevant(queries, gallery, Relevant.of_groups(query_group, gallery_group))
    assert torch.equal(gallery_group[found.best], query_group)
    assert bool((gallery_group[found.rival] != query_group).all())


def test_a_gallery_of_relevant_items_has_no_rival() -> None:
    one = torch.zeros(2, dtype=torch.int64)
    found = rank_relevant(torch.randn(2, 3), torch.randn(2, 3), Relevant.of_groups(one, one))
    assert found.rank.tolist() == [1, 1]
    assert found.rival.tolist() == [-1, -1]


@pytest.mark.parametrize("value", [0.0, 1.0, torch.nan])
def test_a_model_without_opinion_ranks_last(value: float) -> None:
    group = torch.arange(7)
    constant = torch.full((7, 4), value)
    found = rank_relevant(constant, constant, Relevant.of_groups(group, group))
    assert found.rank.tolist() == [7] * 7


def test_blocks_do_not_change_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, gallery = torch.randn(50, 8), torch.randn(40, 8)
    relevant = Relevant.of_groups(torch.arange(50) % 10, torch.arange(40) % 10)
    whole = rank_relevant(queries, gallery, relevant).rank
    monkeypatch.setattr(ranking, "BLOCK_ENTRIES", 7 * 40)
    monkeypatch.setattr(ranking, "TILE_ITEMS", 6)
    assert torch.equal(rank_relevant(queries, gallery, relevant).rank, whole)


@pytest.mark.parametrize("seed", range(5))
def test_rank_of_pairs_equals_a_slow_count_with_ties(seed: int) -> None:
    queries, gallery = tied_features(12, seed=seed), tied_features(15, seed=seed + 100)
    related = torch.rand(12, 15, generator=torch.Generator().manual_seed(seed)) < 0.2
    related[torch.arange(12), torch.arange(12)] = True
    query, item = related.nonzero()[torch.randperm(int(related.sum()))].T
    relevant = Relevant.of_pairs(query, item, num_queries=12)
    found = rank_relevant(queries, gallery, relevant)
    assert relevant.counts.tolist() == related.sum(dim=1).tolist()
    assert found.rank.tolist() == [
        slow_rank(query, gallery, row) for query, row in zip(queries, related.tolist(), strict=True)
    ]
    assert bool(related[torch.arange(12), found.best].all())
    assert not bool(related[torch.arange(12), found.rival].any())


def test_infinite_and_undefined_scores_do_not_help() -> None:
    queries = torch.tensor([[1.0], [1.0], [1.0], [torch.nan]])
    gallery = torch.tensor([[-torch.inf], [-torch.inf], [torch.nan], [0.0]])
    relevant = Relevant.of_pairs(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 3, 2, 3]), num_queries=4)
    # alone at the bottom; below nan; nan itself; nan everywhere
    assert rank_relevant(queries, gallery, relevant).rank.tolist() == [4, 2, 4, 4]


@pytest.mark.parametrize("num_items", [5, 7, 33, 1001])
@pytest.mark.parametrize("num_queries", [1, 17])
def test_equal_items_get_equal_scores_wherever_they_stand(num_queries: int, num_items: int) -> None:
    generator = torch.Generator().manual_seed(0)  # in single precision the last columns of one query differ
    item = torch.nn.functional.normalize(torch.randn(1, 256, generator=generator), dim=1)
    values = scores(torch.randn(num_queries, 256, generator=generator), item.repeat(num_items, 1))
    assert bool((values == values[:, :1]).all())


def test_a_query_without_a_relevant_item_is_refused() -> None:
    with pytest.raises(ValueError, match="1 queries have no relevant item"):
        rank_relevant(
            torch.randn(2, 3), torch.randn(1, 3), Relevant.of_groups(torch.tensor([0, 1]), torch.tensor([0]))
        )


@pytest.mark.parametrize("k", [1, 2, 5, 6, 10])
def test_chance_of_hit_equals_the_share_of_all_orders(k: int) -> None:
    num_relevant, num_items = torch.tensor([1, 2, 3]), 6
    shares = [
        sum(min(order[:r]) < k for order in itertools.permutations(range(num_items))) / 720
        for r in num_relevant.tolist()
    ]  # order[:r]: places of the relevant items
    expected = sum(shares) / len(shares)
    assert chance_of_hit(num_relevant, num_items=num_items, k=k) == pytest.approx(expected, abs=1e-12)


def test_group_sizes_count_the_gallery() -> None:
    assert group_sizes(torch.tensor([2, 0, 5]), torch.tensor([0, 0, 2, 1])).tolist() == [1, 2, 0]


def test_top_matches_come_in_order_and_stop_at_the_gallery() -> None:
    values, found = top_matches(torch.eye(2), torch.tensor([[0.1, 0.9], [0.5, 0.2], [0.3, 0.3]]), k=5)
    assert found.tolist() == [[1, 2, 0], [0, 2, 1]]
    assert values.shape == (2, 3)
