"""Every error a user can cause. The command line prints the message alone and exits with its code."""

CRASHED = 70
"""Exit code of any other error, such as a lost connection to a rank that died: another start may help.

EX_SOFTWARE of sysexits.h.
"""


class VlmError(Exception):
    """Root of the errors that carry a message for the user: what was found, expected, and what to change."""

    exit_code = 1
    """What the command line exits with."""

    of_one_rank = False
    """Whether the other ranks may know nothing of it."""


class ConfigError(VlmError):
    """A value of the configuration is unknown, missing or contradicts another; names its key."""


class DataError(VlmError):
    """Shards, captions or labels are not what the configuration promises."""


class CheckpointError(VlmError):
    """A checkpoint is missing, incomplete or does not fit what it is loaded into."""


class OutputError(VlmError):
    """What a command makes cannot be written: the disk is full, or the rights are missing."""


class TrainingError(VlmError):
    """Training cannot go on: its numbers are not finite any more."""


class StoppedError(VlmError):
    """A signal ended the run after a checkpoint; it can be resumed."""

    exit_code = 75
    """EX_TEMPFAIL of sysexits.h: try again later."""


class HangError(VlmError):
    """Nothing went on for long; the run was ended, and can be resumed."""

    exit_code = 124
    """As of the command `timeout`."""


class DistributedError(VlmError):
    """The process groups are not what the configuration needs."""
