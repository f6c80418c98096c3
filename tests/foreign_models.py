"""Models of transformers with random weights, in folders as that library writes them."""

import vlm  # noqa: F401  before transformers, which imports torchvision

# isort: split
import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from vlm.inference.foreign import Given

WORDS = ["a", "red", "green", "square", "circle", "big", "small"]
EOT = len(WORDS) + 2
VOCAB = EOT + 1
NOTHING = Given()
TEXTS = ["a red square", "big", "a small green circle a red square"]
CONTEXT = 12
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "vocab_size": VOCAB + 3,
}
IMAGE = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
}


def write_tokenizer(folder: Path, *, size: int = VOCAB) -> Path:
    """A `tokenizer.json` of whole words, in which the end of text is the largest id."""
    vocab = {word: i for i, word in enumerate(["<pad>", *WORDS])} | {"<start>": size - 2, "<end>": size - 1}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ids = [(name, vocab[name]) for name in ("<start>", "<end>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ids)
    tokenizer.add_special_tokens(["<pad>", "<start>", "<end>"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>"}))
    return folder / "tokenizer.json"


def write_processor(folder: Path, changes: dict[str, Any] | None = None, *, squash: bool, side: int) -> None:
    sides = {"height": side, "width": side}
    values: dict[str, Any] = {
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.25, 0.3],
        "resample": 2 if squash else 3,
        "size": sides if squash else {"shortest_edge": side},
    }
    crop = {} if squash else {"crop_size": sides, "do_center_crop": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(values | crop | (changes or {})))


def randomised(model: nn.Module, *, noise: float = 0.2) -> nn.Module:
    """Weights large enough for every part to show in the features."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * noise)
        model.logit_scale.fill_(2.0)  # type: ignore[operator, union-attr]
    return model.eval()


def clip_folder(
    folder: Path, *, image: dict[str, Any] | None = None, text: dict[str, Any] | None = None
) -> tuple[Path, CLIPModel]:
    config = CLIPConfig(
        projection_dim=24,
        vision_config=IMAGE | (image or {}),
        text_config={**TEXT, "eos_token_id": EOT, "bos_token_id": EOT - 1, "pad_token_id": 0} | (text or {}),
    )
    model = randomised(CLIPModel(config))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    write_processor(folder, squash=False, side=config.vision_config.image_size)
    return folder, model


def siglip_folder(folder: Path) -> tuple[Path, SiglipModel]:
    text = {**TEXT, "hidden_size": 48, "intermediate_size": 100, "bos_token_id": 0, "eos_token_id": 1}
    config = SiglipConfig(vision_config=IMAGE | {"intermediate_size": 100}, text_config=text)
    model = randomised(SiglipModel(config))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    write_processor(folder, squash=True, side=32)
    return folder, model


def pixels(size: int) -> Tensor:
    """Normalised images."""
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def unit(features: Any) -> Tensor:
    """What transformers' `get_*_features` gives, as unit vectors."""
    vectors = features if isinstance(features, Tensor) else features.pooler_output
    return nn.functional.normalize(vectors, dim=-1)
