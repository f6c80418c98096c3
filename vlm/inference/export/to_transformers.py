"""`CLIPModel` and `SiglipModel` of transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from vlm.data.tokenizers import Tokenizer
from vlm.inference.export.opened import Opened
from vlm.inference.export.source import Source, UnfitError
from vlm.inference.export.tokenizer_files import padding_of, with_new_end, write_tokenizer
from vlm.inference.export.tower import Vit, require_vit
from vlm.inference.foreign import transformers_clip, transformers_siglip
from vlm.inference.foreign.transformers_folder import ACTIVATIONS
from vlm.models import CausalTextSpec, ModelSpec, TransformersTextSpec

_WEIGHTS = "model.safetensors"
# CLIPModel pools at the largest id where its configuration says 2, which old ones did wrongly.
_NOT_AN_END = 2
_NAMES: Mapping[str, str] = {own: theirs for theirs, own in ACTIVATIONS.items()}


def kind_of(source: Source) -> str:
    """The class that holds the model.

    Raises:
        UnfitError: there is none.
    """
    spec, preprocess = source.spec, source.preprocess
    _ = source.tokenizer
    if spec.image_pooler is not None:
        raise UnfitError("the pooling of the image by model.image_pooler")
    if preprocess.resize_mode == "longest":
        raise UnfitError("resize_mode=longest, which image processors of transformers do not know")
    if _is_siglip(spec):
        require_vit(spec.image, "siglip")
        if not torch.equal(source.vectors.image_projection.weight, torch.eye(spec.embed_dim)):
            raise UnfitError("the projection of image vectors, which SiglipModel does not have")
        return "SiglipModel"
    require_causal(spec)
    require_vit(spec.image, "clip")
    return "CLIPModel"


def require_causal(spec: ModelSpec) -> CausalTextSpec:
    """The text tower, if it is CLIP's.

    Raises:
        UnfitError: it is another.
    """
    text = spec.text
    if not isinstance(text, CausalTextSpec):
        raise UnfitError(f"the text tower of model.text.kind={spec.text_tower.kind}")
    if text.pooling != "eot":
        raise UnfitError(f"the class token behind the text (model.text.pooling={text.pooling})")
    return text


def write(source: Source, folder: Path) -> None:
    """Write configuration, weights, image processor and tokenizer."""
    siglip = kind_of(source) == "SiglipModel"
    config = _siglip_config(source) if siglip else _clip_config(source)
    config.architectures = [kind_of(source)]
    config.dtype = "float32"
    config.save_pretrained(folder)
    weights = _siglip_weights(source) if siglip else _clip_weights(source)
    whole = {name: value.detach().contiguous().clone() for name, value in weights.items()}
    save_file(whole, folder / _WEIGHTS, metadata={"format": "pt"})
    _processor(source, siglip=siglip).save_pretrained(folder)
    write_tokenizer(_tokenizer(source), folder, padding=_padding(source))


def open_folder(source: Source, folder: Path) -> Opened:
    """What transformers makes of the folder."""
    import transformers

    quiet: Any = transformers.utils.logging.disable_progress_bar
    quiet()
    siglip = kind_of(source) == "SiglipModel"
    model_class: Any = transformers.SiglipModel if siglip else transformers.CLIPModel
    model, notes = model_class.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    assert not notes["missing_keys"], notes
    assert not notes["unexpected_keys"], notes
    model.eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    normalised = source.vectors.image.normalised
    return Opened(
        library=f"transformers {transformers.__version__}",
        image=lambda image: _unit(model.get_image_features(normalised(image))),
        text=lambda text: _unit(model.get_text_features(text)),
        tokens=lambda texts: tokenizer(list(texts), truncation=True)["input_ids"],
        eot_id=_tokenizer(source).eot_id,
        padding=_padding(source),
    )


def _unit(features: Any) -> Tensor:
    vectors = features if isinstance(features, Tensor) else features.pooler_output
    return F.normalize(vectors, dim=-1)


def _is_siglip(spec: ModelSpec) -> bool:
    text = spec.text
    return isinstance(text, TransformersTextSpec) and text.pooling == "last"


def _tokenizer(source: Source) -> Tokenizer:
    """The model's own, unless `CLIPModel` would misread its end of text."""
    misread = not _is_siglip(source.spec) and source.tokenizer.eot_id == _NOT_AN_END
    return with_new_end(source.tokenizer) if misread else source.tokenizer


def _padding(source: Source) -> int:
    text = source.spec.text_tower
    if isinstance(text, TransformersTextSpec):
        return int(text.options["pad_token_id"])
    return padding_of(_tokenizer(source))


def _clip_weights(source: Source) -> dict[str, Tensor]:
    weights = source.vectors.state_dict()
    weights.pop("logit_bias", None)  # adds the same to all products: vectors and their order do not need it
    new, old = _tokenizer(source).eot_id, source.tokenizer.eot_id
    if new != old:
        table = weights["text.token_embedding.weight"]
        grown = torch.cat([table, table.new_zeros(max(0, new + 1 - len(table)), table.shape[1])])
        grown[new] = table[old]
        weights["text.token_embedding.weight"] = grown
    return transformers_clip.restored(weights)


def _siglip_weights(source: Source) -> dict[str, Tensor]:
    weights = source.vectors.state_dict()
    weights.setdefault("logit_bias", torch.zeros(1))
    return transformers_siglip.restored(weights)


def _clip_config(source: Source) -> Any:
    from transformers import CLIPConfig  # takes seconds to import

    text, tokenizer = require_causal(source.spec), _tokenizer(source)
    vocabulary = max(text.vocab_size or 0, tokenizer.eot_id + 1)
    return CLIPConfig(
        projection_dim=source.spec.embed_dim,
        logit_scale_init_value=float(source.vectors.logit_scale.item()),
        vision_config=_vision(require_vit(source.spec.image, "clip"), eps=1e-5),
        text_config={
            "hidden_size": text.width,
            "intermediate_size": 4 * text.width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "hidden_act": _NAMES[text.activation],
            "layer_norm_eps": 1e-5,
            "max_position_embeddings": text.context_length,
            "vocab_size": vocabulary,
            "projection_dim": source.spec.embed_dim,
            "bos_token_id": tokenizer.bot_id,
            "eos_token_id": tokenizer.eot_id,
            "pad_token_id": _padding(source),
        },
    )


def _siglip_config(source: Source) -> Any:
    from transformers import SiglipConfig  # takes seconds to import

    text = source.spec.text_tower
    assert isinstance(text, TransformersTextSpec)
    options = {name: value for name, value in text.options.items() if name != "model_type"}
    return SiglipConfig(
        vision_config=_vision(require_vit(source.spec.image, "siglip"), eps=1e-6),
        text_config=options | {"projection_size": source.spec.embed_dim},
    )


def _vision(sizes: Vit, *, eps: float) -> dict[str, Any]:
    return {
        "hidden_size": sizes.width,
        "intermediate_size": sizes.mlp_width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "hidden_act": _NAMES[sizes.activation],
        "layer_norm_eps": eps,
        "image_size": sizes.image_size,
        "patch_size": sizes.patch_size,
    }


def _processor(source: Source, *, siglip: bool) -> Any:
    from transformers import CLIPImageProcessor, SiglipImageProcessor  # take seconds to import

    preprocess, spec = source.preprocess, source.spec.image
    square = {"height": preprocess.image_size, "width": preprocess.image_size}
    squash = preprocess.resize_mode == "squash"
    values: dict[str, Any] = {
        "size": square if squash else {"shortest_edge": preprocess.image_size},
        "do_center_crop": not squash,
        "crop_size": None if squash else square,
        "resample": Image.Resampling[preprocess.interpolation.upper()].value,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
        "do_convert_rgb": True,
    }
    return (SiglipImageProcessor if siglip else CLIPImageProcessor)(**values)
