"""A model, a tokenizer and shards of the smallest size that is still real."""

import io
import json
from pathlib import Path

import torch
from PIL import Image
from tiny_model import tiny_mapping

from vlm.data import Preprocess
from vlm.data.tokenizers import Tokenizer, trained_bpe
from vlm.data.writer import ShardWriter
from vlm.inference import Loaded, save_model
from vlm.models import ModelSpec, build_model

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 30), "blue": (30, 30, 200), "grey": (128, 128, 128)}
CHINESE = {"red": "红色", "green": "绿色", "blue": "蓝色", "grey": "灰色"}
IMAGE_SIZE = 16


def tiny_tokenizer() -> Tokenizer:
    texts = [text for name in COLOURS for text in (f"a {name} square", f"{CHINESE[name]}的正方形")]
    return trained_bpe(texts, vocab_size=300, context_length=16)


def tiny_loaded() -> Loaded:
    tokenizer = tiny_tokenizer()
    values = tiny_mapping(context_length=tokenizer.context_length, vocab_size=None, eot_id=None)
    spec = ModelSpec.from_mapping(values).with_tokenizer(
        vocab_size=tokenizer.vocab_size, eot_id=tokenizer.eot_id
    )
    torch.manual_seed(0)
    preprocess = Preprocess(
        image_size=IMAGE_SIZE, background=(255, 255, 255), resize_mode="squash", interpolation="bilinear"
    )
    return Loaded(build_model(spec).eval(), preprocess, tokenizer)


def save_tiny(folder: Path, *, step: int = 7, loaded: Loaded | None = None) -> Path:
    """`tiny_loaded`, or another model, as a checkpoint."""
    loaded = loaded or tiny_loaded()
    save_model(
        folder,
        weights=loaded.model.state_dict(),
        spec=loaded.model.spec,
        preprocess=loaded.preprocess,
        tokenizer=loaded.tokenizer,
        step=step,
        config={"run": {"name": "tiny"}},
    )
    return folder


def write_tiny_shards(folder: Path, *, num_samples: int, max_samples: int = 5) -> str:
    """Plain squares, some nearly alike; the pattern of the shards."""
    with ShardWriter(folder, prefix="", max_samples=max_samples) as writer:
        for row in range(num_samples):
            number = row % len(COLOURS)
            name = list(COLOURS)[number]
            shade = tuple(min(255, value + 7 * (row // len(COLOURS))) for value in COLOURS[name])
            picture = io.BytesIO()
            Image.new("RGB", (20, 20), shade).save(picture, "png")
            record = {
                "colour": name,
                "caption_en": f"a {name} square",
                "caption_zh": f"{CHINESE[name]}的正方形",
                "false": ["a square grey", f"a {list(COLOURS)[number - 1]} square"],
            }
            writer.write(
                f"{row:06d}",
                {
                    "png": picture.getvalue(),
                    "txt": f"a {name} square\n{CHINESE[name]}的正方形".encode(),
                    "cls": str(number).encode(),
                    "json": json.dumps(record, ensure_ascii=False).encode(),
                },
            )
    return str(folder / "*.tar")


def write_tiny_cases(folder: Path) -> Path:
    """Ten squares as image files, in groups of two that share their captions; one is missing, one damaged."""
    (folder / "squares").mkdir(parents=True, exist_ok=True)
    lines = []
    for row in range(10):
        name, other = (list(COLOURS)[(row + step) % 2 + 2 * (row % 4 > 1)] for step in (0, 1))
        if row < 9:
            Image.new("RGB", (20, 20), COLOURS[name]).save(folder / "squares" / f"{row}.png")
        if row == 4:
            (folder / "squares" / f"{row}.png").write_bytes(b"damaged")
        case = {
            "image": f"squares/{row}.png",
            "true_captions": f"a {name} square",
            "false_captions": [f"a {other} square"],
        }
        lines.append(json.dumps(case | {"group": str(row // 2), "category": ("one", "two")[row % 3 % 2]}))
    (folder / "cases.jsonl").write_text("\n".join(lines))
    return folder / "cases.jsonl"
