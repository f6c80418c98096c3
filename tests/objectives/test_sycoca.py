"""CoCa and SyCoCa: switched off term by term, over ranks and micro-batches, and what masks hide."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from generative import CONTRAST, PATCHES, ROWS, TOWERS, batch, coca, mapping_of, model_of, sycoca
from gloo import run_gloo
from torch import Tensor
from torch.nn import functional as F

from vlm.distributed import Topology
from vlm.errors import ConfigError
from vlm.losses import caption_scores, divide, words_of
from vlm.models import DualEncoder, ModelSpec, build_model
from vlm.objectives import ClipObjective, Objective
from vlm.training.accumulation import loss_and_gradients
from vlm.types import Batch

POOLERS = [None, "shared", "parallel", "cascade"]


def step(
    objective: Objective, model: DualEncoder, rows: dict[str, Tensor], parts: int = 1
) -> dict[str, Tensor]:
    """Loss, terms and gradients of this rank."""
    objective.setup(Topology.current())
    output = loss_and_gradients(
        objective,
        model,
        Batch(**rows),  # type: ignore[typeddict-item]
        encode=partial(objective.encode, model),
        micro_batch_size=math.ceil(len(rows["image"]) / parts),
        seed=lambda number: None,
        backward=lambda loss, last: loss.backward(),
    )
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": output.total.detach(), **output.terms, **gradients}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], *, atol: float = 1e-10) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("pooler", POOLERS)
def test_without_their_terms_sycoca_is_coca_and_coca_is_clip(pooler: str | None) -> None:
    less = step(sycoca(reconstruction_weight=0.0, dropped_share=0.0), model_of(pooler=pooler), batch())
    assert_same(less, step(coca(), model_of(pooler=pooler), batch()), atol=0)
    nothing = step(coca(caption_weight=0.0), model_of(pooler=pooler), batch())
    assert_same(nothing, step(ClipObjective(**CONTRAST), model_of(pooler=pooler), batch()), atol=0)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("pooler", POOLERS)
def test_every_parameter_is_trained(tower: str, pooler: str | None) -> None:
    model = model_of(tower, pooler=pooler, pooling="class")
    found = step(sycoca(), model, batch())
    assert {name for name, _ in model.named_parameters()} - found.keys() == set()
    assert all(value.isfinite().all() for value in found.values())


def rank_step(cases: list[dict[str, Any]], parts: int) -> list[dict[str, Tensor]]:
    """Of this rank's rows, gradients averaged over ranks."""
    topology = Topology.current()
    own = ROWS // topology.world_size
    rows = {n: v[topology.rank * own : (topology.rank + 1) * own] for n, v in batch(wordless=False).items()}
    results = []
    for case in cases:
        found = step(sycoca(**case), model_of(pooler="shared"), rows, parts)
        for value in found.values():
            if topology.world_size > 1:
                torch.distributed.all_reduce(value.detach())
        results.append({name: value.detach() / topology.world_size for name, value in found.items()})
    return results


CASES: list[dict[str, Any]] = [
    {},
    {"visible_from": "reuse", "normalise_patches": False, "masked_by": "low"},
    {"dropped_share": 0.0, "reconstruction_weight": 0.0},
]


@pytest.mark.parametrize(
    ("world_size", "parts"),
    [
        (1, 3),
        pytest.param(2, 1, marks=pytest.mark.long),
        (2, 2),
        pytest.param(4, 1, marks=pytest.mark.long),
        (4, 2),
    ],
)
def test_ranks_and_micro_batches_are_one_process(world_size: int, parts: int, tmp_path: Path) -> None:
    whole = rank_step(CASES, 1)
    if world_size == 1:
        found = [rank_step(CASES, parts)]
    else:
        found = run_gloo(rank_step, world_size, tmp_path, CASES, parts)
    for results in found:
        for got, expected in zip(results, whole, strict=True):
            assert_same(got, expected)


def rebuilt(model: DualEncoder, rows: dict[str, Tensor], scores: Tensor, visible_from: str) -> Tensor:
    """Predicted pixels with a fixed mask."""
    visible, hidden = divide(scores, 0.5, by="attentive")
    if visible_from == "reencode":
        tokens = model.visible_patches(rows["image"], visible)
    else:
        states = model.image_states(rows["image"])
        tokens = torch.stack([states.patches[i, visible[i]] for i in range(len(visible))])
    return model.reconstruct(tokens, visible, hidden, model.text_states(rows["text"]))


def hidden_pixels_changed(rows: dict[str, Tensor], scores: Tensor) -> dict[str, Tensor]:
    _, hidden = divide(scores, 0.5, by="attentive")
    image = rows["image"].clone()
    for row, places in enumerate(hidden.tolist()):
        for place in places:
            top, left = 4 * (place // 4), 4 * (place % 4)
            image[row, :, top : top + 4, left : left + 4] += 77
    return {**rows, "image": image}


@pytest.mark.parametrize("tower", TOWERS)
def test_hidden_pixels_do_not_leak_but_where_the_first_pass_is_reused(tower: str) -> None:
    model, rows = model_of(tower), batch()
    scores = torch.rand(ROWS, PATCHES, generator=torch.Generator().manual_seed(0))
    changed = hidden_pixels_changed(rows, scores)
    same = rebuilt(model, rows, scores, "reencode"), rebuilt(model, changed, scores, "reencode")
    torch.testing.assert_close(*same, rtol=0, atol=0)
    leaked = rebuilt(model, rows, scores, "reuse"), rebuilt(model, changed, scores, "reuse")
    assert (leaked[0] - leaked[1]).abs().max() > 1e-6


def test_another_caption_changes_what_is_rebuilt_unless_the_decoder_cannot_see_it() -> None:
    rows = batch()
    other = {**rows, "text": rows["text"].flip(0)}
    scores = torch.rand(ROWS, PATCHES, generator=torch.Generator().manual_seed(0))
    model = model_of()
    assert (
        rebuilt(model, rows, scores, "reencode") - rebuilt(model, other, scores, "reencode")
    ).abs().max() > 1e-6
    assert model.image_decoder is not None
    for block in model.image_decoder.blocks:
        for parameter in block.cross.attn.out_proj.parameters():
            torch.nn.init.zeros_(parameter)
    torch.testing.assert_close(
        rebuilt(model, rows, scores, "reencode"), rebuilt(model, other, scores, "reencode"), rtol=0, atol=0
    )


def test_padding_changes_nothing() -> None:
    rows = batch()
    longer = {**rows, "text": F.pad(rows["text"], (0, 3), value=7)}
    for objective in (coca(), sycoca(masked_by="low")):
        chosen = [i for i in range(ROWS) if i != 1]  # whose masks are random
        first, again = (
            step(objective, model_of(pooling="class"), {n: v[chosen] for n, v in given.items()})
            for given in (rows, longer)
        )
        assert_same(again, first, atol=1e-12)


def test_the_masks_follow_the_words_and_have_no_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    words = F.normalize(torch.randn(1, 4, 32, generator=generator), dim=-1)
    patches = F.normalize(torch.randn(1, PATCHES, 32, generator=generator), dim=-1)
    about = [2, 3, 7, 11]
    patches[0, about] = words[0]
    words, patches = words.requires_grad_(), patches.requires_grad_()
    scores = caption_scores(patches, words, words=torch.ones(1, 4, dtype=torch.bool))
    assert not scores.requires_grad
    stay, hidden = divide(scores, 0.5, by="attentive")
    assert set(about) <= set(hidden[0].tolist())
    kept, dropped = divide(scores, 0.5, by="low")
    assert not set(about) & set(dropped[0].tolist())
    assert torch.equal(stay, dropped)
    assert torch.equal(hidden, kept)


def test_scores_are_those_of_the_most_similar_word_and_marks_are_none() -> None:
    rows, model = batch(), model_of()
    image, text = model.image_states(rows["image"]), model.text_states(rows["text"])
    found = caption_scores(image.each, text.each, words=words_of(text.mask))
    for row in range(ROWS):
        length = rows["text"][row].tolist().index(2)
        if length == 1:
            continue  # no word
        best = [
            max(float(image.each[row, n] @ text.each[row, t]) for t in range(1, length))
            for n in range(PATCHES)
        ]
        torch.testing.assert_close(found[row], torch.tensor(best, dtype=torch.float64))


def test_a_caption_without_words_has_random_masks_and_one_word_is_enough() -> None:
    unit = F.normalize(torch.randn(2, PATCHES, 8), dim=-1)
    words = torch.tensor([[False, False, False], [False, True, False]])
    tokens = F.normalize(torch.randn(2, 3, 8), dim=-1)
    first, again = (caption_scores(unit, tokens, words=words) for _ in range(2))
    assert not torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


@pytest.mark.parametrize("by", ["attentive", "low", "random"])
@pytest.mark.parametrize("share", [0.25, 0.29, 0.5, 0.75])
def test_masks_have_the_share_rounded_down(by: Any, share: float) -> None:
    stay, taken = divide(torch.rand(3, 100), share, by=by)
    assert taken.shape == (3, round(100 * share))
    both = torch.cat([stay, taken], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(100).expand(3, -1))


def test_equal_scores_are_taken_in_the_order_of_places() -> None:
    assert divide(torch.zeros(1, 4), 0.5, by="attentive")[1].tolist() == [[0, 1]]
    assert divide(torch.zeros(1, 4), 0.5, by="low")[1].tolist() == [[2, 3]]


def test_masks_are_random_until_the_warmup_is_over() -> None:
    objective, model, rows = sycoca(mask_warmup_steps=2), model_of(), batch()
    rows = {name: value[2:] for name, value in rows.items()}

    def error(step: int, seed: int) -> Tensor:
        objective.before_step(step)
        torch.manual_seed(seed)
        return objective.encode(model, Batch(**rows))["reconstruction"]  # type: ignore[typeddict-item]

    assert not torch.equal(error(1, 0), error(1, 1))
    assert torch.equal(error(2, 0), error(2, 1))


def test_the_cost_of_a_caption_is_that_of_its_tokens_one_by_one() -> None:
    rows, model = batch(), model_of(pooler="shared")
    objective = coca()
    objective.setup(Topology.current())
    encoded = objective.encode(model, Batch(**rows))  # type: ignore[typeddict-item]
    total, count = 0.0, 0
    for row in range(ROWS):
        ids = rows["text"][row].tolist()
        length = ids.index(2) + 1
        cost = 0.0
        for end in range(1, length):
            one = rows["text"][row : row + 1, :end]
            logits = model.caption_logits(
                model.image_states(rows["image"][row : row + 1]), model.text_states(one)
            )
            cost -= float(logits[0, -1].log_softmax(0)[ids[end]])
        torch.testing.assert_close(float(encoded["caption_cost"][row]), cost)
        assert encoded["caption_tokens"][row] == length - 1
        total, count = total + cost, count + length - 1
    found = objective.loss(model, encoded).terms["caption"]
    torch.testing.assert_close(float(found), total / count)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"caption_weight": -1.0}, "objective.caption_weight"),
        ({"reconstruction_weight": math.nan}, "objective.reconstruction_weight"),
        ({"masked_share": 1.0}, "objective.masked_share"),
        ({"dropped_share": 1.0}, "objective.dropped_share"),
        ({"mask_warmup_steps": -1}, "objective.mask_warmup_steps"),
    ],
)
def test_settings_out_of_range_are_named(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        sycoca(**changes)


def test_patches_that_are_no_squares_of_pixels_are_refused() -> None:
    mapping = mapping_of()
    mapping["image"]["options"]["patch_size"] = [4, 8]
    with pytest.raises(ConfigError, match=r"4 x 2 patches of 4 x 8, which are no squares of its 16 pixels"):
        build_model(ModelSpec.from_mapping(mapping))
    build_model(ModelSpec.from_mapping(mapping | {"image_decoder": None}))


def test_a_share_that_hides_no_patch_is_named() -> None:
    with pytest.raises(ConfigError, match=r"objective\.masked_share=0\.01 of 16 patches"):
        step(sycoca(masked_share=0.01), model_of(), batch())


@pytest.mark.long
def test_few_pairs_are_learned_by_heart() -> None:
    mapping = mapping_of("vit_avg", embed_dim=32)
    mapping["image"]["options"] |= {"embed_dim": 64, "num_heads": 4}
    mapping["text"] |= {"width": 64, "heads": 4}
    mapping["image_decoder"] |= {"width": 64, "heads": 4}
    torch.manual_seed(0)
    model, objective = build_model(ModelSpec.from_mapping(mapping)), sycoca(normalise_patches=False)
    generator = torch.Generator().manual_seed(0)
    rows = batch(32, wordless=False)
    smooth = F.interpolate(torch.rand(32, 3, 4, 4, generator=generator), size=16, mode="bilinear")
    rows["image"] = (255 * smooth).byte()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    found = []
    for _ in range(250):
        output = objective.loss(model, objective.encode(model, Batch(**rows)))  # type: ignore[typeddict-item]
        optimizer.zero_grad()
        output.total.backward()
        optimizer.step()
        found.append({name: float(term.detach()) for name, term in output.terms.items()})
    assert found[-1]["reconstruction"] < found[0]["reconstruction"] / 10
    assert found[-1]["caption"] < 0.1
