"""A training step of open_clip on a model of given sizes, in a process that does nothing else.

It needs torch, timm and open_clip, and nothing of vlm. The step is that of open_clip's trainer: autocast, its
loss, clipping, its optimizer's parameter groups, the clamp of the temperature; without its logging.
"""

import functools
import json
import math
import sys
import time
from typing import Any

import open_clip  # type: ignore[import-not-found]
import timm
import torch


def main() -> None:
    """Measure what the first argument says, print the result as json."""
    case = json.loads(sys.argv[1])
    device = torch.device(case["device"])
    model = _model(case).to(device).train()
    exclude = [p for n, p in model.named_parameters() if p.ndim < 2 or "bn" in n or "logit_scale" in n]
    known = set(map(id, exclude))
    rest = [p for p in model.parameters() if id(p) not in known]
    optimizer = torch.optim.AdamW(
        [{"params": exclude, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.1}],
        lr=1e-3,
        betas=(0.9, 0.98),
    )
    loss = open_clip.loss.ClipLoss()
    size, text = case["image"]["size"], case["text"]
    images = torch.randn(case["rows"], 3, size, size, device=device)
    texts = torch.randint(1, text["vocab_size"] - 2, (case["rows"], text["context_length"]), device=device)
    texts[:, -1] = text["vocab_size"] - 1

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=case["bf16"]):
            image, vectors, scale = model(images, texts)[:3]
            total = loss(image, vectors, scale)
        total.backward()
        if case["clip"] is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), case["clip"], norm_type=2.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))

    for _ in range(case["warmup"]):
        step()
    _wait(device)
    start = time.perf_counter()
    for _ in range(case["steps"]):
        step()
    _wait(device)
    seconds = time.perf_counter() - start
    result = {
        "samples_per_s": case["steps"] * case["rows"] / seconds,
        "parameters": sum(p.numel() for p in model.parameters()),
        "open_clip": open_clip.__version__,
        "torch": torch.__version__,
    }
    print(json.dumps(result))


def _model(case: dict[str, Any]) -> Any:
    """Its dual encoder: the timm tower of the same name and options, its own text tower of the same size."""
    image, create = case["image"], timm.create_model
    timm.create_model = functools.partial(create, **image["options"])
    try:
        return open_clip.model.CLIP(
            embed_dim=case["embed_dim"],
            vision_cfg={
                "timm_model_name": image["name"],
                "timm_model_pretrained": False,
                "timm_pool": "",
                "timm_proj": "linear",
                "image_size": image["size"],
            },
            text_cfg=case["text"],
        )
    finally:
        timm.create_model = create


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
