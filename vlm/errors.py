"""Every error a user can cause. The command line prints the message alone and exits with code 1."""


class VlmError(Exception):
    """Root of the errors that carry a message for the user: what was found, expected, and what to change."""


class ConfigError(VlmError):
    """A value of the configuration is unknown, missing or contradicts another; names its key."""


class DataError(VlmError):
    """Shards, captions or labels are not what the configuration promises."""


class CheckpointError(VlmError):
    """A checkpoint is missing, incomplete or does not fit what it is loaded into."""


class DistributedError(VlmError):
    """The process groups are not what the configuration needs."""
