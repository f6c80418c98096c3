"""Starting the processes of a run before anything is prepared, so that they can agree on it."""

import lightning as L


def start_ranks(trainer: L.Trainer) -> None:
    """Start this node's other ranks where no launcher did, and join the process group.

    Lightning would do both at the start of `fit`, which finds them done.
    """
    strategy = trainer.strategy
    if strategy.launcher is None or trainer.world_size == 1:
        return
    strategy.launcher.launch(strategy.setup_environment, trainer=trainer)
