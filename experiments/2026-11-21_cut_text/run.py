"""What cutting text to its longest caption saves: a training step on emoji captions, cut and padded in turn.

python run.py DATA    DATA/train/*.tar are the shards of the emoji set
"""

import statistics
import sys
import time

import torch

from vlm.data import open_shards, read_records
from vlm.data.tokenizers import trained_bpe
from vlm.models import ModelSpec, build_model
from vlm.objectives import ClipObjective

BATCH, ROUNDS, CONTEXT = 256, 9, 77


def captions(folder: str) -> list[str]:
    records = read_records(open_shards(f"{folder}/train/*.tar", key="DATA"))
    return [text for r in records for text in (r["json"]["caption_en"], r["json"]["caption_zh"])]


def spec(vocab_size: int, eot_id: int) -> ModelSpec:
    image = {
        "name": "vit_tiny_patch16_224",
        "image_size": 64,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "pretrained": False,
        "options": {"patch_size": 8, "embed_dim": 192, "depth": 6, "num_heads": 3},
    }
    text = {
        "kind": "causal",
        "context_length": CONTEXT,
        "vocab_size": vocab_size,
        "eot_id": eot_id,
        "width": 192,
        "layers": 4,
        "heads": 3,
        "activation": "gelu",
    }
    return ModelSpec.from_mapping({"embed_dim": 192, "init_logit_scale": 14.3, "image": image, "text": text})


def main() -> None:
    torch.manual_seed(0)
    texts = captions(sys.argv[1])
    tokenizer = trained_bpe(texts, vocab_size=4096, context_length=CONTEXT)
    model = build_model(spec(tokenizer.vocab_size, tokenizer.eot_id))
    objective = ClipObjective(max_logit_scale=100.0, mask_equal_captions=False)
    image = torch.randint(0, 256, (BATCH, 3, 64, 64), dtype=torch.uint8)
    order = torch.randperm(len(texts)).tolist()

    def seconds(text: torch.Tensor, *, whole_step: bool) -> float:
        start = time.perf_counter()
        if whole_step:
            batch = {"image": image, "text": text, "caption_id": torch.zeros(BATCH, dtype=torch.int64)}
            objective.loss(model, objective.encode(model, batch)).total.backward()
        else:
            model.encode_text(text).sum().backward()
        return time.perf_counter() - start

    for whole_step in (False, True):
        ratios, cut_s, padded_s, lengths = [], [], [], []
        for turn in range(ROUNDS + 1):
            cut = tokenizer([texts[i] for i in order[turn * BATCH : (turn + 1) * BATCH]])
            padded = torch.nn.functional.pad(cut, (0, CONTEXT - cut.shape[1]))
            times = seconds(cut, whole_step=whole_step), seconds(padded, whole_step=whole_step)
            if turn:  # the first warms up
                cut_s.append(times[0])
                padded_s.append(times[1])
                ratios.append(times[1] / times[0])
                lengths.append(cut.shape[1])
        print(
            f"{'whole step' if whole_step else 'text tower'}: cut {statistics.median(cut_s):.3f} s, "
            f"padded {statistics.median(padded_s):.3f} s, ratio {statistics.median(ratios):.2f} "
            f"(from {min(ratios):.2f} to {max(ratios):.2f}), length {statistics.median(lengths)} of {CONTEXT}"
        )


if __name__ == "__main__":
    main()
