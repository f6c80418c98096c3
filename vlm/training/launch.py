"""Starting the processes of a run before anything is prepared, so that they can agree on it."""

import os
from collections.abc import Mapping

import lightning as L
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from vlm.distributed.launch import srun_ranks
from vlm.errors import ConfigError


def srun_environment() -> ClusterEnvironment | None:
    """The ranks of srun, with signals left to this project; None where Lightning finds all by itself.

    Lightning's own handler would answer SIGUSR1 with a checkpoint of its kind and with `scontrol requeue`.
    """
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return None
    tasks = os.environ["SLURM_NTASKS"]
    if tasks != "1" and not srun_ranks(os.environ) and "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            f"this SLURM job has {tasks} tasks, and train was not started by srun, so that it would wait for "
            "the others: start it with srun train ..., or by slurm/train.sbatch"
        )
    return SLURMEnvironment(auto_requeue=False)


def check_ranks(environment: Mapping[str, str], *, devices: int, num_nodes: int) -> None:
    """Compare what is configured with the ranks that a launcher has started.

    Raises:
        ConfigError: they are not as many; ranks would train alone, or wait for others that there are not.
    """
    environment = {**environment, **srun_ranks(environment)}
    ranks, started = devices * num_nodes, int(environment.get("WORLD_SIZE", "0"))
    if started in (0, ranks):
        return
    launchers = {"TORCHELASTIC_RUN_ID": "torchrun", "SLURM_STEP_NUM_TASKS": "srun"}
    launcher = next((name for key, name in launchers.items() if key in environment), "the launcher")
    nodes = int(environment.get("SLURM_STEP_NUM_NODES", "1"))
    local = int(environment.get("LOCAL_WORLD_SIZE", started // nodes))
    raise ConfigError(
        f"trainer.devices={devices} x trainer.num_nodes={num_nodes} is {ranks} "
        f"{'rank' if ranks == 1 else 'ranks'}, {launcher} has started {started}; set "
        f"trainer.devices={local} trainer.num_nodes={started // local}"
    )


def start_ranks(trainer: L.Trainer) -> None:
    """Start this node's other ranks where no launcher did, and join the process group.

    Lightning would do both at the start of `fit`, which finds them done.
    """
    strategy = trainer.strategy
    if trainer.world_size == 1:
        return
    if strategy.launcher is None:  # this process is one that a launcher has started
        strategy.setup_environment()
        return
    strategy.launcher.launch(strategy.setup_environment, trainer=trainer)
