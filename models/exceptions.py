"""Failures of the networks and their data. ``MeissnerError`` is the base of every error that a user may see."""


class MeissnerError(Exception):
    """Base of all errors of this project: one clear sentence that says what, where, and what is allowed."""


class ModelInputError(MeissnerError, ValueError):
    """Arrays or crystals that a network cannot take: wrong shape, NaN, unknown element, an empty class."""


class LeakageError(ModelInputError):
    """A split that has on both sides what it promises to keep apart."""


class TrainingError(MeissnerError, RuntimeError):
    """A training that cannot go on, such as a loss that is not finite."""


class CheckpointError(MeissnerError, ValueError):
    """Stored weights that do not fit the network or the data they are asked to serve."""
