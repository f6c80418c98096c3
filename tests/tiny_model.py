"""A dual encoder small enough for float64, as plain data, and captions and objectives for it."""

from typing import Any

import torch
from torch import Tensor

from vlm.objectives import ClipObjective, Objective, SigLipObjective

OBJECTIVES = {"clip": ClipObjective, "siglip": SigLipObjective}

VOCAB, EOT, CONTEXT = 40, 2, 12

TEXTS: dict[str, dict[str, Any]] = {
    "causal": {
        "kind": "causal",
        "context_length": CONTEXT,
        "vocab_size": VOCAB,
        "eot_id": EOT,
        "width": 16,
        "layers": 2,
        "heads": 2,
        "activation": "gelu",
    },
    "bag_of_words": {
        "kind": "bag_of_words",
        "context_length": CONTEXT,
        "vocab_size": VOCAB,
        "eot_id": EOT,
        "width": 16,
    },
    "transformers": {
        "kind": "transformers",
        "name": "not read",
        "pretrained": False,
        "pooling": "eot",
        "context_length": CONTEXT,
        "vocab_size": VOCAB,
        "eot_id": EOT,
        "options": {
            "model_type": "bert",
            "vocab_size": VOCAB,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": CONTEXT,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
    },
}


def tiny_mapping(kind: str = "causal", /, **text: Any) -> dict[str, Any]:
    """A spec as plain data: the text tower of `kind` with the keys of `text` replaced."""
    return {
        "embed_dim": 8,
        "init_logit_scale": 10.0,
        "image": {
            "name": "vit_tiny_patch16_224",
            "image_size": 16,
            "mean": [0.5, 0.4, 0.3],
            "std": [0.2, 0.25, 0.3],
            "pretrained": False,
            "options": {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
        },
        "text": {**TEXTS[kind], **text},
    }


def token_rows(count: int, *, generator: torch.Generator) -> Tensor:
    """Token ids of so many captions of different lengths, each with its end of text: int64 [count, 8]."""
    text = torch.randint(3, VOCAB, (count, 8), generator=generator)
    for row in range(count):
        text[row, 2 + row % 6] = EOT
    return text


def objective_of(kind: str = "clip", /, **changes: Any) -> Objective:
    values = {
        "implementation": "tiled",
        "group_size": None,
        "max_logit_scale": 100.0,
        "mask_equal_captions": False,
    }
    return OBJECTIVES[kind](**{**values, **changes})
