"""What a failure of torch becomes, by the words that it was seen to use."""

import pytest
import torch

from cityopt.errors import TrainingError
from cityopt.training.failures import naming_failures

SEEN = (
    "CUDA out of memory. Tried to allocate 1024.00 MiB. GPU 0 has a total capacity of 139.80 GiB of which 315.56 MiB "
    "is free. Process 4479 has 123.99 GiB memory in use. Including non-PyTorch memory, this process has 15.48 GiB "
    "memory in use. Of the allocated memory 14.86 GiB is allocated by PyTorch, and 15.29 MiB is reserved by PyTorch "
    "but unallocated. If reserved but unallocated memory is large try setting "
    "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)
"""By torch 2.11 on an H200 that another process had filled."""


def test_gpu_without_memory_is_told_with_who_holds_it_and_without_advice_for_allocators():
    with pytest.raises(TrainingError) as told, naming_failures("Lower training.batch_size."):
        raise torch.OutOfMemoryError(SEEN)
    assert str(told.value).startswith("memory ran out. Lower training.batch_size. CUDA out of memory.")
    assert "Process 4479 has 123.99 GiB memory in use." in str(told.value)
    assert str(told.value).endswith(" this process has 15.48 GiB memory in use.")
