"""A folder of open_clip: its own vision transformer where the tower is one, else timm's through open_clip."""

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from vlm.files import write_json
from vlm.inference.export.opened import Opened
from vlm.inference.export.source import Source, UnfitError
from vlm.inference.export.to_transformers import require_causal
from vlm.inference.export.tokenizer_files import padding_of, write_tokenizer
from vlm.inference.export.tower import plain_trunk, require_alike, require_vit
from vlm.inference.foreign import open_clip as names
from vlm.models import ImageTowerSpec

_INTERPOLATIONS = ("bicubic", "bilinear")
_ACTIVATIONS = ("gelu", "quick_gelu")


def kind_of(source: Source) -> str:
    """The image tower that open_clip makes of it.

    Raises:
        UnfitError: there is none.
    """
    spec = source.spec
    _ = source.tokenizer
    if spec.image_pooler is not None:
        raise UnfitError("the pooling of the image by model.image_pooler")
    text = require_causal(spec)
    if text.activation not in _ACTIVATIONS:
        raise UnfitError(f"the activation {text.activation} of the text tower")
    _require_preprocess(source)
    try:
        sizes = require_vit(spec.image, "clip")
    except UnfitError:
        _require_timm(spec.image, width=source.vectors.image.width)
        return "CLIP with an image tower of timm"
    if sizes.activation != text.activation:
        raise UnfitError(f"the activation {sizes.activation} of images beside {text.activation} of texts")
    return "CLIP"


def write(source: Source, folder: Path) -> None:
    """Write description, weights and tokenizer."""
    text, by_timm = require_causal(source.spec), kind_of(source) != "CLIP"
    described: dict[str, Any] = {
        "embed_dim": source.spec.embed_dim,
        "vision_cfg": _timm_vision(source.spec.image) if by_timm else _own_vision(source.spec.image),
        "text_cfg": {
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
            # In a folder any name says that the tokenizer lies beside; on the hub it is the repository's.
            "hf_tokenizer_name": source.name,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
            "pool_type": "eos",
            "eos_id": source.tokenizer.eot_id,
        },
    }
    if text.activation == "quick_gelu":
        described["quick_gelu"] = True
    if source.vectors.logit_bias is not None:
        described["init_logit_bias"] = source.vectors.logit_bias.item()
    preprocess: dict[str, Any] = {
        "mean": list(source.spec.image.mean),
        "std": list(source.spec.image.std),
        "interpolation": source.preprocess.interpolation,
        "resize_mode": source.preprocess.resize_mode,
    }
    if source.preprocess.resize_mode == "longest":
        preprocess["fill_color"] = source.preprocess.background[0]
    write_json(folder / names.CONFIG, {"model_cfg": described, "preprocess_cfg": preprocess}, indent=2)
    weights = source.vectors.state_dict()
    found = _with_timm(weights) if by_timm else names.restored(weights)
    whole = {name: value.detach().contiguous().clone() for name, value in found.items()}
    save_file(whole, folder / names.WEIGHTS[0], metadata={"format": "pt"})
    write_tokenizer(source.tokenizer, folder, padding=padding_of(source.tokenizer))


def open_folder(source: Source, folder: Path) -> Opened:
    """What open_clip makes of the folder."""
    import open_clip  # type: ignore[import-not-found]

    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    tokenizer: Any = open_clip.get_tokenizer(f"local-dir:{folder}")
    normalised, end = source.vectors.image.normalised, source.tokenizer.eot_id
    return Opened(
        library=f"open_clip {open_clip.__version__}",
        image=lambda image: F.normalize(model.encode_image(normalised(image)), dim=-1),
        text=lambda text: F.normalize(model.encode_text(text), dim=-1),
        tokens=lambda texts: [_to_end(row, end) for row in tokenizer(texts).tolist()],
        eot_id=end,
        padding=padding_of(source.tokenizer),
    )


def _to_end(row: list[int], end: int) -> list[int]:
    return row[: row.index(end) + 1]


def _require_preprocess(source: Source) -> None:
    preprocess = source.preprocess
    if preprocess.interpolation not in _INTERPOLATIONS:
        raise UnfitError(
            f"interpolation={preprocess.interpolation}; open_clip has {' and '.join(_INTERPOLATIONS)}"
        )
    if preprocess.resize_mode == "longest" and len(set(preprocess.background)) > 1:
        raise UnfitError(f"the background {list(preprocess.background)}, which is no grey")


def _own_vision(spec: ImageTowerSpec) -> dict[str, Any]:
    sizes = require_vit(spec, "clip")
    ratio = sizes.mlp_width / sizes.width
    # open_clip rounds width * ratio down, so the ratio of an uneven width aims at its middle.
    exact = sizes.mlp_width % sizes.width == 0
    return {
        "image_size": sizes.image_size,
        "layers": sizes.layers,
        "width": sizes.width,
        "head_width": sizes.width // sizes.heads,
        "mlp_ratio": ratio if exact else (sizes.mlp_width + 0.5) / sizes.width,
        "patch_size": sizes.patch_size,
    }


def _timm_vision(spec: ImageTowerSpec) -> dict[str, Any]:
    return {
        "timm_model_name": spec.name,
        "timm_model_pretrained": False,
        "timm_pool": "",  # the model's own
        "timm_proj": "linear",
        "image_size": spec.image_size,
    }


def _require_timm(spec: ImageTowerSpec, *, width: int) -> None:
    """open_clip gives timm a name and nothing else, neither an option nor a size of image."""
    what, than = f"the image tower {spec.name}", "timm's without options, which is what open_clip builds"
    with torch.device("meta"):
        other: nn.Module = timm.create_model(spec.name)
        other.reset_classifier(0)  # type: ignore[operator]
    own: Any = plain_trunk(spec)
    require_alike(own, other, what=what, than=than)
    if getattr(own, "global_pool", None).__class__ is str and own.global_pool != other.global_pool:
        raise UnfitError(f"{what} pools with global_pool={own.global_pool}, {than}, with {other.global_pool}")
    if width != other.num_features:  # families with a layer behind their pooling
        raise UnfitError(f"{what} gives {width} numbers, of which open_clip expects {other.num_features}")


def _with_timm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    images = {name: value for name, value in weights.items() if name.startswith("image")}
    texts = {name: value for name, value in weights.items() if name not in images}
    moved = {name.replace("image.trunk.", "visual.trunk."): value for name, value in images.items()}
    moved["visual.head.proj.weight"] = moved.pop("image_projection.weight")
    return moved | names.restored(texts)
