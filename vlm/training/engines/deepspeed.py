"""DeepSpeed's ZeRO: optimizer (1), gradients too (2), weights too (3) cut into shares of the ranks."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, cast

import deepspeed
import lightning as L
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DeepSpeedStrategy, Strategy
from torch import Tensor, nn

from vlm.distributed import Topology
from vlm.errors import ConfigError
from vlm.models import DualEncoder
from vlm.objectives import Objective
from vlm.training.engines.engine import Encode, Engine, kept_by_first_rank, make_contiguous

MOMENTS = ("exp_avg", "exp_avg_sq")


class DeepSpeed(Engine):
    """Each micro-batch goes forward and backward through DeepSpeed's engine, which counts them so.

    In bf16 the towers' weights are cast to it, and the optimizer steps a copy in float32.
    """

    def __init__(self, *, stage: int, precision: str, gradient_clip: float | None) -> None:
        super().__init__(precision=precision, gradient_clip=gradient_clip)
        self.stage = stage
        self._strategy = _Strategy(config=_config(stage, gradient_clip))
        self._uncast: dict[nn.Parameter, Tensor] = {}

    def strategy(self, *, one_device: bool) -> Strategy:
        return self._strategy

    @property
    def lightning_precision(self) -> Literal["32-true", "bf16-mixed"]:
        # Goes into DeepSpeed's configuration; there is no autocast.
        return "bf16-mixed" if self.precision == "bf16-mixed" else "32-true"

    def prepare(self, model: DualEncoder) -> None:
        # Of collectives that DeepSpeed calls by their older names, once a call.
        warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+_tensor` is deprecated")
        make_contiguous(model)
        if self.precision == "bf16-mixed":
            # DeepSpeed takes its float32 copy from weights that it has cast already.
            self._uncast = {p: p.detach().clone() for p in model.parameters()}

    def ready(
        self, model: DualEncoder, optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor] | None
    ) -> None:
        _make_states(cast(Any, optimizer), moments or {})
        for name, parameter in _trainable(model):
            if parameter in self._uncast:
                _set_weight(parameter, self._uncast.pop(parameter))
            for entry in MOMENTS:
                if moments and f"{entry}/{name}" in moments:  # none for one that never had a gradient
                    _set_state(parameter, moments[f"{entry}/{name}"], entry)

    def encode(self, module: L.LightningModule, objective: Objective, model: DualEncoder) -> Encode:
        return partial(self._strategy.deepspeed_engine, objective.encode, model)

    def backward(self, module: L.LightningModule, loss: Tensor, *, last: bool) -> None:
        engine = self._strategy.deepspeed_engine
        engine.set_gradient_accumulation_boundary(last)
        engine.backward(loss)

    def step(self, model: DualEncoder, optimizer: LightningOptimizer) -> Tensor:
        optimizer.step()
        engine = self._strategy.deepspeed_engine
        # A gradient that is not finite makes DeepSpeed leave the step out.
        norm = engine.get_global_grad_norm() if engine.was_step_applied() else torch.inf
        return torch.as_tensor(norm, device=self._strategy.root_device)

    def moments(self, model: DualEncoder, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        states = cast(Any, optimizer).optimizer.state
        step = next(iter(states.values()))["step"]
        parameters = dict(_trainable(model))
        gathers: dict[str, Callable[[], Tensor]] = {
            f"{entry}/{name}": partial(safe_get_full_optimizer_state, parameter, entry)
            for name, parameter in parameters.items()
            for entry in MOMENTS
        }
        gathers |= {f"step/{name}": lambda: step.clone() for name in parameters}
        return kept_by_first_rank(gathers.items())

    def _full(self, value: Tensor) -> Tensor:
        if not isinstance(value, nn.Parameter):
            return value
        if value.requires_grad:
            return cast(Tensor, safe_get_full_fp32_param(value))
        if value in self._uncast:
            return self._uncast[value]
        with deepspeed.zero.GatheredParameters([value]):  # does nothing where all ranks have the whole
            return value.detach().clone()

    def check(self, trainer: L.Trainer) -> None:
        if not isinstance(trainer.accelerator, CUDAAccelerator):
            raise ConfigError(
                f"trainer.strategy=deepspeed_zero{self.stage} needs GPUs, and trainer.accelerator has none; "
                "take trainer.strategy=fsdp2 or ddp"
            )


class _Strategy(DeepSpeedStrategy):
    """Lightning would send a whole step through one call of DeepSpeed's engine, which expects a micro-batch,
    and build a model in pieces, before it has its weights."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        assert self.lightning_module is not None
        return self.lightning_module.training_step(*args, **kwargs)

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        self._init_config_if_needed()
        yield


def _config(stage: int, gradient_clip: float | None) -> dict[str, Any]:
    """DeepSpeed's own configuration; precision comes from Lightning's trainer."""
    return {
        "zero_optimization": {
            "stage": stage,
            # In elements. The default of 500 million is more than most of the models here have in all.
            "reduce_bucket_size": 50_000_000,
            "allgather_bucket_size": 50_000_000,
        },
        "gradient_clipping": gradient_clip or 0.0,
        "zero_allow_untested_optimizer": True,
        "train_micro_batch_size_per_gpu": 1,  # for DeepSpeed's own reports alone
    }


def _trainable(model: DualEncoder) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _shares(optimizer: Any) -> list[Tensor]:
    """This rank's float32 weights, as the inner optimizer has them."""
    names = ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat")  # stages 1 and 2; stage 3
    shares: list[Tensor] = next(getattr(optimizer, name) for name in names if hasattr(optimizer, name))
    return shares


def _make_states(optimizer: Any, moments: Mapping[str, Tensor]) -> None:
    """AdamW's states: moments of zero, and one count of steps where AdamW has one for each parameter.

    Stages 1 and 2 would make them in the first step, and link parameters to them after the first of our
    groups of parameters, which leaves those of the others without.
    """
    steps = [value.item() for key, value in moments.items() if key.startswith("step/")]
    for share in _shares(optimizer):
        states = {entry: torch.zeros_like(share) for entry in MOMENTS}
        states["step"] = torch.tensor(float(max(steps, default=0)), device=share.device)
        optimizer.optimizer.state[share] = states
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        optimizer._lazy_init_hp_params_optimizer_state()


def _set_state(parameter: Any, value: Tensor, entry: str) -> None:
    if hasattr(parameter, "ds_tensor"):
        safe_set_local_optimizer_state(parameter, _own_share(parameter, value), entry)
    else:
        safe_set_full_optimizer_state(parameter, value, entry)


def _set_weight(parameter: Any, value: Tensor) -> None:
    if hasattr(parameter, "ds_tensor"):
        safe_set_local_fp32_param(parameter, _own_share(parameter, value))
    else:
        safe_set_full_fp32_param(parameter, value)


def _own_share(parameter: Any, value: Tensor) -> Tensor:
    """What this rank has of a parameter in stage 3, which rounds the length up to a multiple of the ranks.

    DeepSpeed's own function for whole tensors forgets the rounding.
    """
    length, topology = parameter.ds_tensor.numel(), Topology.current()
    padded = nn.functional.pad(value.flatten(), (0, length * topology.world_size - value.numel()))
    return padded.narrow(0, length * topology.rank, length)
