"""FSDP2: weights, gradients and moments are cut into rows, one share a rank, and gathered block by block."""

import warnings

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from vlm.distributed import Topology
from vlm.models import ENTRANCES, DualEncoder, blocks_of
from vlm.training.engines.engine import Engine, make_contiguous


class Fsdp2(Engine):
    """Gradients are averaged after every micro-batch: to keep them whole until the last would take the
    memory that sharding saves."""

    def __init__(self, *, precision: str, gradient_clip: float | None) -> None:
        super().__init__(precision=precision, gradient_clip=gradient_clip)
        self._strategy = _Strategy()

    def strategy(self, *, one_device: bool) -> Strategy:
        return self._strategy

    def prepare(self, model: DualEncoder) -> None:
        # Of in-place changes to what a tower returns; a projection only reads it.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        make_contiguous(model)
        device, ranks = self._strategy.root_device.type, Topology.current().world_size
        mesh = init_device_mesh(device, (ranks,), mesh_dim_names=("ranks",))
        half = torch.bfloat16 if self.precision == "bf16-mixed" else None
        policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32 if half else None)
        parts = list(model.parts().values())
        for module in (*(block for part in parts for block in blocks_of(part)), *parts, model):
            # The last to be sharded would stay whole after a forward, and after an evaluation for good.
            fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        for name in ENTRANCES:
            register_fsdp_forward_method(model, name)

    def _full(self, value: Tensor) -> Tensor:
        return value.full_tensor() if isinstance(value, DTensor) else value


class _Strategy(ModelParallelStrategy):
    """Ranks start before there is a module, on which Lightning would hang its mesh; `prepare` makes ours."""

    def setup_environment(self) -> None:
        super(ModelParallelStrategy, self).setup_environment()
        self._setup_distributed()
