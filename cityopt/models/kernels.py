"""Whether kernels of our own can run on a GPU: `roi_align_triton` and `suppression_triton` are imported only then."""

from functools import lru_cache
from importlib.util import find_spec


@lru_cache
def has_triton() -> bool:
    """Say whether triton is there; it comes with torch's builds for CUDA on Linux."""
    return find_spec("triton") is not None
