"""Memory and time of one loss, forward and backward, in a process that does nothing else.

    python loss_worker.py '{"code": "vlm", "loss": "softmax", "implementation": "tiled", ...}'

It is run by its path, so that the interpreter of an environment with open_clip alone can run it too. For more
columns than rows this process takes the part of the first of many ranks: collectives of torch's fake process
group give it its own rows again and again, so that shapes, memory and arithmetic are those of such a rank,
and no time goes into communication.
"""

import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

WARM_ROWS = 64
CALL_S, MAX_CALLS = 2.0, 20
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Of image, text, scale and bias."""


def main() -> None:
    """Measure what the first argument says, print the result as json."""
    case = json.loads(sys.argv[1])
    device = torch.device(case["device"])
    if case["columns"] > case["rows"]:
        _pretend_ranks(case["columns"] // case["rows"])
    loss = _vlm(case) if case["code"] == "vlm" else _open_clip(case)
    _once(loss, *_features(WARM_ROWS, case, device))  # libraries load, threads start
    arguments = _features(case["rows"], case, device)
    memory = _Peak(device)
    seconds = [_once(loss, *arguments)]
    peak = memory.bytes()
    while sum(seconds[1:]) < CALL_S and len(seconds) < MAX_CALLS:
        seconds.append(_once(loss, *arguments))
    # The first call pays for memory that later ones find.
    result = {"peak_bytes": peak, "seconds": seconds[1:], "threads": torch.get_num_threads()}
    print(json.dumps(result | {"torch": torch.__version__}))


def _features(rows: int, case: dict[str, Any], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def vectors() -> Tensor:
        drawn = F.normalize(torch.randn(rows, case["dim"], generator=generator), dim=1)
        return drawn.to(device, getattr(torch, case["dtype"])).requires_grad_()

    scale, bias = (torch.tensor([value], device=device, requires_grad=True) for value in (14.3, -10.0))
    return vectors(), vectors(), scale, bias


def _once(loss: Loss, *arguments: Tensor) -> float:
    """Seconds of a forward and a backward; the gradients are dropped."""
    _wait(arguments[0].device)
    start = time.perf_counter()
    loss(*arguments).backward()  # type: ignore[no-untyped-call]
    _wait(arguments[0].device)
    seconds = time.perf_counter() - start
    for argument in arguments:
        argument.grad = None
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _vlm(case: dict[str, Any]) -> Loss:
    from vlm.losses import info_nce, sigmoid_loss

    how: dict[str, Any] = {"implementation": case["implementation"]}
    if case["tile"] is not None:
        how["tile"] = case["tile"]
    if case["loss"] == "softmax":
        return lambda image, text, scale, bias: info_nce(image, text, logit_scale=scale, **how)
    return lambda image, text, scale, bias: sigmoid_loss(
        image, text, logit_scale=scale, logit_bias=bias, **how
    )


def _open_clip(case: dict[str, Any]) -> Loss:
    import open_clip  # type: ignore[import-not-found]

    ranks = case["columns"] // case["rows"]
    if case["loss"] == "softmax":
        many = {"local_loss": True, "gather_with_grad": True, "world_size": ranks} if ranks > 1 else {}
        clip = open_clip.loss.ClipLoss(**many)
        return lambda image, text, scale, bias: clip(image, text, scale.to(image.dtype))
    siglip = open_clip.loss.SigLipLoss(world_size=ranks)
    return lambda image, text, scale, bias: siglip(image, text, scale.to(image.dtype), bias.to(image.dtype))


def _pretend_ranks(number: int) -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", rank=0, world_size=number, store=FakeStore())


class _Peak:
    """Largest memory from here on, above what is taken here: of the GPU, else resident."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
            return
        if platform.system() == "Linux":
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # the peak begins anew, at what is resident now
        self.before = _resident_peak()

    def bytes(self) -> int:
        """What was taken at most since the start."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return _resident_peak() - self.before


def _resident_peak() -> int:
    if platform.system() == "Linux":
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes


if __name__ == "__main__":
    main()
