"""Starting the processes of a run before anything is prepared, so that they can agree on it."""

import lightning as L
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment


def srun_environment() -> ClusterEnvironment | None:
    """The ranks of srun, with signals left to this project; None where Lightning finds all by itself.

    Lightning's own handler would answer SIGUSR1 with a checkpoint of its kind and with `scontrol requeue`.
    """
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return None
    return SLURMEnvironment(auto_requeue=False)


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
