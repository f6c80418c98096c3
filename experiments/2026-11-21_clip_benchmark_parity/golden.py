"""What CLIP_benchmark's own functions make of some written vectors, for a test of ours.

python golden.py FILE    with an interpreter that has clip_benchmark
"""

import json
import sys

import torch
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from torch.nn.functional import normalize

NAMES = [f"name {number}" for number in range(6)]
TEMPLATES = ["{c}", "a photo of {c}"]


class Written:
    """A model whose inputs are its outputs."""

    def encode_image(self, images):
        return images

    encode_text = encode_image


class Loader(list):
    dataset = type("Named", (), {"classes": NAMES})


def written(vectors):
    return lambda texts: torch.tensor([vectors[text] for text in texts])


def classified(images, vectors, target) -> dict[str, float]:
    loader = Loader([(images[:10], target[:10]), (images[10:], target[10:])])
    return zeroshot_classification.evaluate(
        Written(), loader, written(vectors), NAMES, TEMPLATES, device="cpu", amp=False
    )


def main() -> None:
    generator = torch.Generator().manual_seed(0)

    def unit(rows: int):
        drawn = normalize(torch.randn(rows, 4, generator=generator), dim=1)
        return normalize((drawn * 1000).round() / 1000, dim=1)

    images, labels = unit(24), torch.arange(24) ** 2 % 5  # three of the six classes occur
    prompts = [template.format(c=name) for name in NAMES for template in TEMPLATES]
    vectors = dict(zip(prompts, unit(len(prompts)).tolist(), strict=True))
    several = torch.rand(24, 6, generator=generator) < 0.3
    captions = [[f"caption {row}.{number}" for number in range(5)] for row in range(24)]
    every = [text for own in captions for text in own]
    vectors |= dict(zip(every, unit(len(every)).tolist(), strict=True))
    pairs = [(images[:10], captions[:10]), (images[10:], captions[10:])]
    content = {
        "images": images.tolist(),
        "texts": vectors,
        "names": NAMES,
        "templates": TEMPLATES,
        "labels": labels.tolist(),
        "several": [row.nonzero().flatten().tolist() for row in several],
        "captions": captions,
        "expected": {
            "classification": classified(images, vectors, labels),
            "several": classified(images, vectors, several.int()),
            "retrieval": zeroshot_retrieval.evaluate(
                Written(), pairs, written(vectors), device="cpu", amp=False, recall_k_list=[1, 5, 10]
            ),
        },
    }
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(content, file)


if __name__ == "__main__":
    main()
