import pytest
import torch
from fake_embedder import FakeEmbedder

from vlm.errors import DataError
from vlm.evaluation import CaptionChoice
from vlm.evaluation.caption_choice import choice_accuracy


def test_accuracy_equals_a_slow_count_with_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    true, false = (torch.randint(0, 4, (100,), generator=generator).float() for _ in range(2))
    points = [
        1.0 if t > f else 0.5 if t == f else 0.0 for t, f in zip(true.tolist(), false.tolist(), strict=True)
    ]
    assert choice_accuracy(true, false) == pytest.approx(sum(points) / 100)


def test_noise_of_single_precision_is_a_tie() -> None:
    true = torch.full((8,), 0.3)
    noise = torch.tensor([1e-7, -1e-7] * 4)
    assert choice_accuracy(true, true + noise) == 0.5


def test_nan_scores_lose() -> None:
    assert choice_accuracy(torch.tensor([torch.nan]), torch.tensor([0.0])) == 0.0


def choice_data() -> FakeEmbedder:
    return FakeEmbedder(
        texts={"red": [1.0, 0.0], "blue": [0.0, 1.0], "green": [0.5, 0.0], "same": [1.0, 0.0]},
        images=[[1.0, 0.2], [0.1, 1.0]],
        records=[
            {"key": "a", "txt": "red", "json": {"replaced": ["blue", "green"], "swapped": "same"}},
            {"key": "b", "txt": "green", "json": {"replaced": ["blue"], "swapped": []}},
        ],
    )


def test_every_wrong_caption_is_a_pair_and_kinds_are_apart() -> None:
    choice = CaptionChoice("x.tar", "txt", negatives={"replaced": "json.replaced", "swapped": "json.swapped"})
    result = choice(choice_data())
    assert result.metrics == {"replaced_acc": pytest.approx(2 / 3), "swapped_acc": 0.5}
    assert result.chance == {"replaced_acc": 0.5, "swapped_acc": 0.5}
    examples = result.details["examples"]["replaced"]
    assert [row["false"] for row in examples["won"]] == ["blue", "green"]
    assert [(row["sample"], row["true"], row["false"]) for row in examples["lost"]] == [(1, "green", "blue")]


def test_a_kind_that_no_sample_has_is_refused() -> None:
    with pytest.raises(DataError, match=r"negatives.added: no sample of x.tar has anything in 'json.added'"):
        CaptionChoice("x.tar", "txt", negatives={"added": "json.added"})(choice_data())
