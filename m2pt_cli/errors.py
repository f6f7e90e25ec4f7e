"""Expected errors: a message, the next step for the user, and the exit code of the command.

Raise one of these when bad input, a missing file or a missing device is the cause. The command line prints ``message``
and ``hint`` and exits with ``exit_code``; any other exception is a bug and ends with a traceback.
"""

from __future__ import annotations

# Messages of CUDA libraries whose own allocation, outside torch's allocator, fails.
_NO_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


class M2PTError(Exception):
    """An expected failure.

    Args:
        message: one line that says what was found and what is wrong with it.
        hint: the next step, usually a command to run; None where there is none.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def to_dict(self) -> dict[str, dict[str, str | None]]:
        """The JSON form printed under ``--json``: ``{"error": {"type", "message", "hint"}}``."""
        return {"error": {"type": type(self).__name__, "message": self.message, "hint": self.hint}}


class UnavailableError(M2PTError):
    """A base or a data set is not available: offline, not found, or access denied (exit code 1)."""


class DeviceError(M2PTError):
    """The device does not exist, its memory is full, or the disk is full (exit code 1)."""


class GenerationError(M2PTError):
    """Questions could not be answered, or another process of the run ended early (exit code 1)."""


class DivergenceError(M2PTError):
    """Training diverged: a loss or a weight became NaN or infinite (exit code 1)."""


class SettingsError(M2PTError):
    """An invalid flag or setting, an unknown name, or an output directory that is not empty (exit code 2)."""

    exit_code = 2


class InputError(M2PTError):
    """An input file is missing, unreadable or invalid (exit code 3)."""

    exit_code = 3


class AdapterError(M2PTError):
    """An adapter is missing, damaged, trained on another base, or not usable here (exit code 4)."""

    exit_code = 4


class Interrupted(M2PTError):
    """A signal stopped the work after its state was saved (exit code 130 or 143)."""

    def __init__(self, message: str, hint: str | None = None, *, signal_number: int = 2) -> None:
        super().__init__(message, hint)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error, from torch or from a CUDA library, means that a device is out of memory. Imports no torch."""
    if type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _NO_MEMORY)
