import math
from pathlib import Path

import pytest
import torch
import yaml
from tiny_model import EOT, TEXTS, tiny_mapping

from vlm.models import DualEncoder, ModelSpec, build_model

CONFIGS = Path(__file__).parents[2] / "configs" / "model"
TEXT = torch.tensor([[4, 5, 6, EOT, 0, 0], [7, 8, 9, 10, 11, EOT]])


def build(**image: object) -> DualEncoder:
    values = tiny_mapping()
    values["image"] |= image
    torch.manual_seed(0)
    return build_model(ModelSpec.from_mapping(values))


@pytest.mark.parametrize(
    ("name", "parameters"), [("vit_b32", 151_277_313), ("vit_b16", 149_620_737), ("vit_l14", 427_616_513)]
)
def test_standard_models_have_as_many_parameters_as_clip(name: str, parameters: int) -> None:
    spec = ModelSpec.from_mapping(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()))
    with torch.device("meta"):
        model = build_model(spec.with_tokenizer(vocab_size=49408, eot_id=49407))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("kind", TEXTS)
def test_embeddings_have_unit_length_in_float32_under_autocast(kind: str) -> None:
    model = build_model(ModelSpec.from_mapping(tiny_mapping(kind)))
    image = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        for embedding in (model.encode_image(image), model.encode_text(TEXT)):
            assert embedding.dtype == torch.float32
            torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2), rtol=0, atol=1e-6)


def test_bytes_are_normalised_with_the_mean_and_deviation_of_the_spec() -> None:
    model = build().double().eval()
    image = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    normalised = torch.empty(2, 3, 16, 16, dtype=torch.float64)
    for channel, (mean, std) in enumerate(zip((0.5, 0.4, 0.3), (0.2, 0.25, 0.3), strict=True)):
        normalised[:, channel] = (image[:, channel].double() / 255 - mean) / std
    torch.testing.assert_close(model.encode_image(image), model.encode_image(normalised), rtol=0, atol=1e-6)


def test_logit_scale_is_the_logarithm_in_one_element() -> None:
    scale = build().logit_scale
    assert scale.shape == (1,)
    assert scale.item() == pytest.approx(math.log(10.0))


def test_parameters_are_all_that_is_saved() -> None:
    model = build()
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()


def test_one_seed_gives_one_model() -> None:
    first, second = build().state_dict(), build().state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_parameter_names_are_fixed() -> None:
    """Checkpoints and the mapping from other libraries' weights rest on them."""
    names = {name.replace(".blocks.1.", ".blocks.0.") for name, _ in build().named_parameters()}
    block = "text.blocks.0."
    text = {name for name in names if name.startswith("text")}
    assert text == {
        "text.token_embedding.weight",
        "text.positional_embedding",
        *(f"{block}{layer}.{p}" for layer in ("ln_1", "ln_2") for p in ("weight", "bias")),
        *(f"{block}attn.{layer}.{p}" for layer in ("in_proj", "out_proj") for p in ("weight", "bias")),
        *(f"{block}mlp.{layer}.{p}" for layer in ("c_fc", "c_proj") for p in ("weight", "bias")),
        "text.ln_final.weight",
        "text.ln_final.bias",
        "text_projection.weight",
    }
    assert names - text - {name for name in names if name.startswith("image.trunk.")} == {
        "image_projection.weight",
        "logit_scale",
    }
