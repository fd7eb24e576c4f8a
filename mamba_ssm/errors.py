"""Failures that a user can mend. Each message is one line that says what is wrong and what to do."""


class MambaESIError(Exception):
    """Base of every error this package raises on purpose about a user's input, file or machine."""


class BookError(MambaESIError):
    """A book cannot be read: missing, empty, encrypted, scanned, damaged, or not text at all."""


class CheckpointError(MambaESIError):
    """A checkpoint cannot be loaded: unknown name, damaged file, missing key, wrong shape."""


class BackendError(MambaESIError):
    """A back-end was asked for by name and cannot run here."""


class ShelfError(MambaESIError):
    """A shelf cannot be used, or has no such book."""


class ClusterError(MambaESIError):
    """Ray is missing or cannot be reached, or a library's storage cannot be used."""


class QuestionError(MambaESIError):
    """A question, or a file of them, cannot be asked."""


class CorpusError(MambaESIError):
    """A corpus cannot be written or opened: a source that is no text, other sources, a missing or damaged file."""


class TrainingError(MambaESIError):
    """A training run cannot begin, go on, or be resumed. What it has saved is still there."""


class ServerError(MambaESIError):
    """The server cannot start: a package is missing, or its address is taken."""


class LeftOutError(MambaESIError, ModuleNotFoundError):
    """A part of the original mamba_ssm that this package lacks. Its modules raise it instead of being imported."""

    def __init__(self, what: str) -> None:
        super().__init__(left_out(what))


def left_out(what: str) -> str:
    """The one sentence for all of the original that is not here."""
    return (
        f"mamba-esi, the mamba_ssm that is installed here, lacks {what}: "
        "where you need that, install the original mamba-ssm in another environment"
    )
