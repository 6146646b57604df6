"""Failures that a flow treats differently. Each also inherits the builtin that it refines."""

from models.exceptions import MeissnerError


class InputError(MeissnerError, ValueError):
    """A file, table or setting that the user gave cannot be used."""


class RemoteError(MeissnerError, ConnectionError):
    """A server does not answer, or not now: the same request may pass later."""


class WorkspaceError(MeissnerError, OSError):
    """The workspace cannot be read or written: permission, full disk, a damaged file."""


class MissingStageError(MeissnerError, FileNotFoundError):
    """A stage needs what an earlier stage has not yet made."""


class RefusedError(MeissnerError, RuntimeError):
    """A stage refused more of its input than is allowed; what it made of the rest is there."""


class EngineError(MeissnerError, RuntimeError):
    """A band engine is not installed, or failed for one material."""
