"""Memory and disk that ran out, told as what they are and not as whatever noticed it.

Stands around everything that runs a model: trainings, `evaluate` and `predict`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cityopt.errors import TrainingError
from cityopt.tracking.run_folder import FULL

_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What torch says in a plain RuntimeError where memory ran out beside its own CUDA allocator."""
_ALLOCATOR_TALK = " Of the allocated memory "
"""Where torch, having said who holds how much of a GPU, goes on about its allocator's settings."""


@contextmanager
def naming_failures(advice: str) -> Iterator[None]:
    """Give memory and disk that ran out the reason that a study records.

    Raises TrainingError: `oom`, with the advice what to do about it, or `disk`.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _name_memory(advice, error) from error
    except RuntimeError as error:
        if not any(text in str(error) for text in _OUT_OF_MEMORY):
            raise
        raise _name_memory(advice, error) from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise TrainingError("disk", f"the disk is full. Free some space. {error}") from error


def _name_memory(advice: str, error: BaseException) -> TrainingError:
    found = str(error).partition(_ALLOCATOR_TALK)[0]
    return TrainingError("oom", f"memory ran out. {advice} {found}".rstrip())
