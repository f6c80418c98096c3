"""A training step of open_clip on a model of given sizes, in a process that does nothing else.

It needs torch, timm and open_clip, and nothing of vlm. The step is that of open_clip's trainer: autocast, its
loss, clipping, its optimizer's parameter groups, the clamp of the temperature; without its logging.
"""

import functools
import itertools
import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import open_clip  # type: ignore[import-not-found]
import timm
import torch


def main() -> None:
    """Measure what the first argument says, print the result as json."""
    case = json.loads(sys.argv[1])
    clock = _Clock(torch.device(case["device"]))
    model = _model(case).to(clock.device).train()
    parameters = sum(p.numel() for p in model.parameters())
    step = _step(case, model, clock)
    for _ in range(case["warmup"]):
        step()
    seconds, split = clock.time(lambda: [step() for _ in range(case["steps"])])
    done = "encodes, takes the loss, clips, AdamW (its trainer's, not fused), clamps the temperature"
    how = f"{open_clip.__version__}{', compiled' if case['compile'] else ''}, images normalised beforehand"
    result = {
        "samples_per_s": case["steps"] * case["rows"] / seconds,
        "split": {part: share / seconds for part, share in split.items()}
        | {"rest": 1 - sum(split.values()) / seconds},
        "parameters": parameters,
        "text_length": case["text"]["context_length"],
        "threads": torch.get_num_threads(),
        "step": f"{how}; {done}, without its logging.",
        "torch": torch.__version__,
    }
    print(json.dumps(result))


def _step(case: dict[str, Any], model: Any, clock: "_Clock") -> Callable[[], None]:
    """A step of its trainer."""
    optimizer = _optimizer(case, model)
    run = _forward(case, model, clock)
    loss = open_clip.loss.SigLipLoss() if case["sigmoid"] else open_clip.loss.ClipLoss()
    size, text = case["image"]["size"], case["text"]
    images = torch.randn(case["rows"], 3, size, size, device=clock.device)
    shape = (case["rows"], text["context_length"])
    texts = torch.randint(1, text["vocab_size"] - 2, shape, device=clock.device)
    texts[:, -1] = text["vocab_size"] - 1

    def step() -> None:
        clock.start()
        optimizer.zero_grad()
        with torch.autocast(clock.device.type, torch.bfloat16, enabled=case["bf16"]):
            encoded = run(images, texts)
            clock.mark("encode" if case["compile"] else "text")
            total = loss(*encoded)
        clock.mark("loss")
        total.backward()
        clock.mark("backward")
        if case["clip"] is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), case["clip"], norm_type=2.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        clock.mark("optimizer")

    return step


def _forward(case: dict[str, Any], model: Any, clock: "_Clock") -> Any:
    """Its model; compiled it is one piece, else the end of the image tower is marked."""
    if case["compile"]:
        return torch.compile(model)
    model.visual.register_forward_hook(lambda *_: clock.mark("image"))
    return model


def _optimizer(case: dict[str, Any], model: Any) -> torch.optim.Optimizer:
    """As its trainer makes it: not fused, no decay of vectors and of the temperature."""
    how = dict(case["optimizer"])
    decay = how.pop("weight_decay")
    exclude = [p for n, p in model.named_parameters() if p.ndim < 2 or "bn" in n or "logit_scale" in n]
    known = set(map(id, exclude))
    rest = [p for p in model.parameters() if id(p) not in known]
    groups = [{"params": exclude, "weight_decay": 0.0}, {"params": rest, "weight_decay": decay}]
    return torch.optim.AdamW(groups, **how)


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
            init_logit_bias=case["init_logit_bias"],
        )
    finally:
        timm.create_model = create


class _Clock:
    """Seconds of the parts of steps: between events on a GPU's stream, else of the process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[tuple[str, Any]] = []

    def start(self) -> None:
        """A step begins."""
        self.mark("")

    def mark(self, part: str) -> None:
        """What was done since the last mark belongs to this part."""
        self._marks.append((part, self._now()))

    def time(self, work: Callable[[], Any]) -> tuple[float, dict[str, float]]:
        """Seconds of some steps, and of their parts."""
        self._marks.clear()
        self._wait()
        start = time.perf_counter()
        work()
        self._wait()
        seconds = time.perf_counter() - start
        split: dict[str, float] = {}
        for (_, before), (part, after) in itertools.pairwise(self._marks):
            if part:
                took = after - before if isinstance(after, float) else before.elapsed_time(after) / 1000
                split[part] = split.get(part, 0.0) + took
        return seconds, split

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


if __name__ == "__main__":
    main()
