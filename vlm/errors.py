"""Every error a user can cause. The command line prints the message alone and exits with its code."""

CRASHED = 70
"""Exit code of any other error, such as a lost connection to a rank that died: another start may help.

EX_SOFTWARE of sysexits.h.
"""


OF_ONE_RANK = 201
"""Exit code of a mistake that one rank alone may have met.

The others fail or are killed as they wait for it, and srun ends with the greatest code of all ranks: this one
is above those of signals.
"""


class VlmError(Exception):
    """Root of the errors that carry a message for the user: what was found, expected, and what to change."""

    exit_code = 1
    """What the command line exits with."""

    of_all_ranks = False
    """Whether every rank ends with it, so that the first one speaks for all."""

    def on_all_ranks(self) -> "VlmError":
        """This error, raised on every rank alike."""
        self.of_all_ranks = True
        return self


class ConfigError(VlmError):
    """A value of the configuration is unknown, missing or contradicts another; names its key."""


class DataError(VlmError):
    """Shards, captions or labels are not what the configuration promises."""


class CheckpointError(VlmError):
    """A checkpoint is missing, incomplete or does not fit what it is loaded into."""


class OutputError(VlmError):
    """What a command makes cannot be written: the disk is full, or the rights are missing."""


class EndpointError(VlmError):
    """A language model does not answer; another start goes on."""


class TrainingError(VlmError):
    """Training cannot go on: its numbers are not finite any more."""


class StoppedError(VlmError):
    """A signal ended the run after a checkpoint; it can be resumed."""

    of_all_ranks = True

    exit_code = 75
    """EX_TEMPFAIL of sysexits.h: try again later."""


class HangError(VlmError):
    """Nothing went on for long; the run was ended, and can be resumed."""

    exit_code = 124
    """As of the command `timeout`."""


class DistributedError(VlmError):
    """The process groups are not what the configuration needs."""


class LostRankError(DistributedError):
    """Another rank ended in the middle of the work; what was computed is kept, another start goes on."""

    exit_code = CRASHED
