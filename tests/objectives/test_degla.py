"""DeGLA beside its equations, pair by pair, and over ranks and micro-batches beside one process."""

import io
import itertools
import math
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from contrastive_reference import softmax_reference
from gloo import run_gloo
from tiny_model import objective_of, tiny_mapping, token_rows
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vlm.distributed import Topology
from vlm.errors import ConfigError
from vlm.losses import grounded_contrast, negatives_of_other_anchors, squared_distance
from vlm.models import DualEncoder, ModelSpec, build_model
from vlm.objectives import DeglaObjective
from vlm.training.accumulation import loss_and_gradients
from vlm.types import Batch

ROWS, HARD = 8, 3
PAPER = {
    "hard_negatives": "own",
    "image_grounded_weight": 0.1,
    "text_grounded_weight": 0.1,
    "text_grounded_positive": "teacher",
    "text_grounded_negatives": "own",
    "text_grounded_scale": 10.0,
    "distillation_weight": 1.28,
}
OFF = {
    **PAPER,
    "hard_negatives": "none",
    "image_grounded_weight": 0.0,
    "text_grounded_weight": 0.0,
    "distillation_weight": 0.0,
}
CASES: list[dict[str, Any]] = [
    PAPER,
    {**PAPER, "hard_negatives": "all", "text_grounded_negatives": "repo_compat"},
    {**PAPER, "hard_negatives": "none", "text_grounded_positive": "self", "distillation_weight": 0.0},
    {**OFF, "distillation_weight": 0.7},
]


def degla(**changes: Any) -> DeglaObjective:
    common = {"group_size": None, "max_logit_scale": 100.0, "mask_equal_captions": False}
    return DeglaObjective(**{**PAPER, "implementation": "tiled", **common, **changes})


def unit(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def present() -> Tensor:
    """The last pair has no negatives, others fewer than three."""
    found = torch.rand(ROWS, HARD, generator=torch.Generator().manual_seed(5)) < 0.7
    found[-1] = False
    return found


def grounded_reference(anchor: Tensor, positive: Tensor, hard: Tensor, there: Tensor, scale: float) -> Tensor:
    losses = []
    for i in range(len(anchor)):
        right = math.exp(scale * float(anchor[i] @ positive[i]))
        wrong = [math.exp(scale * float(anchor[i] @ hard[i, k])) for k in range(HARD) if there[i, k]]
        losses.append(-math.log(right / (right + sum(wrong))))
    return torch.tensor(sum(losses) / len(losses), dtype=torch.float64)


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    text = token_rows(ROWS * (1 + HARD), generator=generator)
    return {
        "image": torch.randint(0, 256, (ROWS, 3, 16, 16), generator=generator, dtype=torch.uint8),
        "text": text[:ROWS],
        "caption_id": torch.arange(ROWS),
        "negative_text": text[ROWS:].view(ROWS, HARD, 8),
        "negative_mask": present(),
    }


def model_of(seed: int) -> DualEncoder:
    torch.manual_seed(seed)
    return build_model(ModelSpec.from_mapping(tiny_mapping())).double()


def test_grounded_contrast_is_the_papers() -> None:
    anchor, positive, hard = unit(ROWS, 5, seed=0), unit(ROWS, 5, seed=1), unit(ROWS, HARD, 5, seed=2)
    found = grounded_contrast(anchor, positive, hard, present=present(), scale=10.0)
    expected = grounded_reference(anchor, positive, hard, present(), 10.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_another_samples_negatives_do_not_count_but_in_repo_compat() -> None:
    anchor, positive, hard = unit(ROWS, 5, seed=0), unit(ROWS, 5, seed=1), unit(ROWS, HARD, 5, seed=2)
    everything = torch.ones(ROWS, HARD, dtype=torch.bool)

    def of_first(hard: Tensor, *, compat: bool) -> Tensor:
        there = everything
        if compat:
            hard, there = negatives_of_other_anchors(hard, there)
        return grounded_contrast(anchor[:1], positive[:1], hard[:1], present=there[:1], scale=10.0)

    shuffled = torch.cat([hard[:1], hard[1:].flip(0)])
    assert of_first(hard, compat=False) == of_first(shuffled, compat=False)
    assert of_first(hard, compat=True) != of_first(shuffled, compat=True)


def test_repo_compat_takes_the_places_of_the_released_mask() -> None:
    """Its mask is the identity repeated along the columns, over negatives laid out text after text."""
    hard, there = unit(ROWS, HARD, 5, seed=2), present()
    mask = torch.eye(ROWS, dtype=torch.bool).repeat(1, HARD)
    found, found_there = negatives_of_other_anchors(hard, there)
    for row in range(ROWS):
        assert torch.equal(found[row], hard.flatten(0, 1)[mask[row]])
        assert torch.equal(found_there[row], there.flatten()[mask[row]])


def test_permuting_pairs_changes_nothing() -> None:
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))
    rows = batch()
    first = step(PAPER, rows, parts=1)
    again = step(PAPER, {name: value[order] for name, value in rows.items()}, parts=1)
    for name in first:
        torch.testing.assert_close(first[name], again[name], rtol=0, atol=1e-12)


def test_a_teacher_that_is_the_student_is_no_distance_away() -> None:
    vectors = unit(ROWS, HARD, 5, seed=0).requires_grad_()
    distance = squared_distance(vectors, vectors.detach(), present=present())
    distance.backward()
    assert distance == 0
    assert (vectors.grad == 0).all()
    other = unit(ROWS, HARD, 5, seed=1)
    expected = sum(
        float(((vectors[i, k] - other[i, k]) ** 2).sum().detach())
        for i in range(ROWS)
        for k in range(HARD)
        if present()[i, k]
    )
    assert float(squared_distance(vectors, other, present=present()).detach()) == pytest.approx(
        expected / ROWS, abs=1e-12
    )


def test_with_everything_off_it_is_clip_bit_for_bit() -> None:
    rows, clip, off = batch(), objective_of("clip"), degla(**OFF)
    assert off.required_keys == clip.required_keys
    assert not off.needs_teacher
    losses = []
    for objective in (clip, off):
        model = model_of(0)
        losses.append(objective.loss(model, objective.encode(model, Batch(**rows))).total)  # type: ignore[typeddict-item]
        losses[-1].backward()
        losses.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.equal(losses[0], losses[2])
    assert torch.equal(losses[1], losses[3])


def test_the_whole_is_the_papers_sum() -> None:
    rows, model, teacher = batch(), model_of(0), model_of(1)
    objective = degla()
    encoded = {**objective.encode(model, Batch(**rows)), **objective.teach(teacher, Batch(**rows))}  # type: ignore[typeddict-item]
    output = objective.loss(model, encoded)
    image, text = model.encode_image(rows["image"]), model.encode_text(rows["text"])
    hard = model.encode_text(rows["negative_text"].flatten(0, 1)).view(ROWS, HARD, -1)
    others = [teacher.encode_image(rows["image"]), teacher.encode_text(rows["text"])]
    taught = teacher.encode_text(rows["negative_text"].flatten(0, 1)).view(ROWS, HARD, -1)
    scale, there = model.logit_scale.exp(), rows["negative_mask"]
    distance = (image - others[0]).square().sum() + (text - others[1]).square().sum()
    distance = distance + (hard - taught).square().sum(2)[there].sum()
    expected = (
        softmax_reference(image, text, scale, None, (hard, there, "own"))
        + 0.1 * grounded_reference(image, text, hard, there, float(scale))
        + 0.1 * grounded_reference(text, others[1], hard, there, 10.0)
        + 1.28 * distance / ROWS
    )
    torch.testing.assert_close(output.total, expected, rtol=0, atol=1e-10)


def test_own_and_all_differ_by_the_other_samples_negatives() -> None:
    rows, model = batch(), model_of(0)
    for scope in ("own", "all"):
        objective = degla(**{**OFF, "hard_negatives": scope})
        encoded = objective.encode(model, Batch(**rows))  # type: ignore[typeddict-item]
        hard = (encoded["negative"], encoded["negative_mask"], scope)
        expected = softmax_reference(encoded["image"], encoded["text"], model.logit_scale.exp(), None, hard)
        found = objective.loss(model, encoded).total
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_no_gradient_reaches_the_teacher() -> None:
    rows, model, teacher = batch(), model_of(0), model_of(1)
    objective = degla()
    encoded = {
        **objective.encode(model, Batch(**rows)),
        **torch.no_grad()(objective.teach)(teacher, Batch(**rows)),
    }  # type: ignore[typeddict-item]
    objective.loss(model, encoded).total.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in model.parameters())


def test_pairs_without_negatives_are_no_trouble() -> None:
    rows = batch() | {"negative_mask": torch.zeros(ROWS, HARD, dtype=torch.bool)}
    found = step(PAPER, rows, parts=1)
    assert found["igc"] == 0
    assert found["tgc"] == 0
    assert all(value.isfinite().all() for value in found.values())
    plain = step({**OFF, "distillation_weight": 1.28}, rows, parts=1)
    torch.testing.assert_close(found["itc"], plain["itc"], rtol=0, atol=1e-12)


def step(case: dict[str, Any], rows: dict[str, Tensor], *, parts: int) -> dict[str, Tensor]:
    """Loss, terms and gradients of this rank."""
    model, teacher, objective = model_of(0), model_of(1), degla(**case)
    objective.setup(Topology.current())
    run: nn.Module = Encode(model)
    if Topology.current().world_size > 1:
        run = DistributedDataParallel(run)
    output = loss_and_gradients(
        objective,
        model,
        Batch(**rows),  # type: ignore[typeddict-item]
        encode=partial(run, objective),
        teach=torch.no_grad()(partial(objective.teach, teacher)),
        micro_batch_size=math.ceil(len(rows["image"]) / parts),
        seed=lambda number: None,
        backward=lambda loss, last: loss.backward(),
    )
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": output.total.detach(), **{n: t.detach() for n, t in output.terms.items()}, **gradients}


class Encode(nn.Module):
    """The towers as the data-parallel wrapper needs them; the temperature is outside, as in training."""

    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.image, self.text = nn.ModuleList([]), nn.ModuleList([])
        self.towers = nn.ModuleList([module for part in model.towers().values() for module in part])
        self._model = [model]

    def forward(self, objective: DeglaObjective, rows: Batch) -> Any:
        return objective.encode(self._model[0], rows)


def all_cases(parts: tuple[int, ...]) -> list[dict[str, Tensor]]:
    topology = Topology.current()
    rows = {name: value.chunk(topology.world_size)[topology.rank] for name, value in batch().items()}
    found = []
    for case, count in itertools.product(CASES, parts):
        one = step(case, rows, parts=count)
        named = {n: v for n, v in one.items() if v.ndim == 0 or n.startswith("logit")}
        for name, value in named.items():  # what no engine averages
            value = value.clone()
            if topology.world_size > 1:
                torch.distributed.all_reduce(value)
            one[name] = value / topology.world_size
        found.append(one)
    return found


@cache
def one_process() -> bytes:
    found = [step(case, batch(), parts=1) for case in CASES]
    buffer = io.BytesIO()
    torch.save(found, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_and_micro_batches_are_one_process(tmp_path: Path, world_size: int) -> None:
    expected = torch.load(io.BytesIO(one_process()))
    parts = (1, 2) if world_size < 4 else (1,)
    found = [all_cases((1, 2, 3))] if world_size == 1 else run_gloo(all_cases, world_size, tmp_path, parts)
    parts = (1, 2, 3) if world_size == 1 else parts
    for rank in found:
        for (wanted, _), got in zip(itertools.product(expected, parts), rank, strict=True):
            assert got.keys() == wanted.keys()
            for name in wanted:
                torch.testing.assert_close(got[name], wanted[name], rtol=0, atol=1e-10, msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distillation_weight": -1.0}, "objective.distillation_weight=-1.0 must be a number of at least 0"),
        ({"image_grounded_weight": math.nan}, "objective.image_grounded_weight=nan must be"),
        ({"text_grounded_scale": 0.0}, "objective.text_grounded_scale=0.0 must be positive"),
    ],
)
def test_numbers_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        degla(**changes)
