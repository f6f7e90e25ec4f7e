"""Expected errors: each has a message, the next step, and the exit code of the command.

Raise one of these wherever bad input, a missing file or a missing device is the cause. The command line prints
``message`` and ``hint`` and exits with ``exit_code``; any other exception is a bug and ends with a traceback.
"""

from __future__ import annotations

# Out-of-memory messages of CUDA's libraries that allocate memory themselves, and of torch on a CPU.
_NO_MEMORY = (
    "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator",
)  # fmt: skip


class M2PTError(Exception):
    """An expected failure.

    Args:
        message: one line that says what was found and what is wrong with it.
        hint: the next step, usually a command to run; None if there is none.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def to_dict(self) -> dict[str, dict[str, str | None]]:
        """Return the JSON form printed under ``--json``: ``{"error": {"type", "message", "hint"}}``."""
        return {"error": {"type": type(self).__name__, "message": self.message, "hint": self.hint}}


class UnavailableError(M2PTError):
    """A base or a data set is not available: offline, not found, not allowed (exit code 1)."""


class DeviceError(M2PTError):
    """No such device, out of memory, or a full disk (exit code 1)."""


class GenerationError(M2PTError):
    """Every question failed (exit code 1)."""


class DivergenceError(M2PTError):
    """Training diverged: a loss or a weight became NaN or infinite (exit code 1)."""


class SettingsError(M2PTError):
    """A bad flag or setting, an unknown name, or an output directory that is not empty (exit code 2)."""

    exit_code = 2


class InputError(M2PTError):
    """An input file is missing, unreadable or invalid (exit code 3)."""

    exit_code = 3


class AdapterError(M2PTError):
    """An adapter is missing, damaged, trained on another base, or not usable here (exit code 4)."""

    exit_code = 4


class Interrupted(M2PTError):
    """Work stopped by a signal after its state was saved (exit code 130 or 143)."""

    def __init__(self, message: str, hint: str | None = None, *, signal_number: int = 2) -> None:
        super().__init__(message, hint)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of torch or of CUDA's libraries means out of memory; does not import torch."""
    if type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)
