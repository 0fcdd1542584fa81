"""Pickles of named arrays, read without running anything in them: the files of detectron2's model zoo.

A pickle is a program. This reader lets it build plain containers, numbers, text and arrays, and knows the four
globals that arrays need only by name: stand-ins that take down an array's type, shape and bytes, and are turned into
arrays when everything has been read. Any other global is refused before it is looked up. So neither numpy's code
nor anybody else's is at the file's command.

Source: Python's `pickle` ("Restricting Globals"); numpy's `ndarray.__reduce__` and `dtype.__reduce__`.
"""

import math
import pickle
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cityopt.errors import WeightsError

_KINDS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


class _StandIn:
    """Base of what a file may name: a pickle's command to change one fails."""

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it changes what it may only name")


class _ArrayType(_StandIn):
    """`numpy.ndarray`: named, never made."""

    def __new__(cls, *_: object) -> Self:
        raise pickle.UnpicklingError("it makes an array in an unusual way")


class _Kind(_StandIn):
    """`numpy.dtype`: its name and byte order."""

    def __init__(self, name: object = "", *_: object) -> None:
        self.name, self.order = name, "<"

    def __setstate__(self, state: object) -> None:
        if not (isinstance(state, tuple) and len(state) >= 5 and state[1] in ("<", ">", "|") and state[4] is None):
            raise pickle.UnpicklingError("an array has an unusual type")
        self.order = state[1]

    def resolve(self) -> np.dtype[Any]:
        """Return numpy's type, of plain numbers alone."""
        if self.name not in _KINDS:
            raise pickle.UnpicklingError(f"an array must hold plain numbers, but its type is {self.name!r}")
        return np.dtype(f"{self.order}{self.name}")


class _Array(_StandIn):
    """An array as its file describes it."""

    def __init__(self) -> None:
        self.parts: tuple[object, ...] = ()

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("an array has no bytes")
        self.parts = state

    def resolve(self) -> NDArray[Any]:
        """Make the array. Raises pickle.UnpicklingError: type, shape and bytes do not belong together."""
        _, shape, kind, is_fortran, raw = self.parts or (None,) * 5
        if isinstance(raw, str):  # bytes that Python 2 wrote
            raw = raw.encode("latin1")
        if not (isinstance(kind, _Kind) and isinstance(raw, bytes) and isinstance(shape, tuple)):
            raise pickle.UnpicklingError("an array must have a shape, a type and bytes")
        sides = tuple(side for side in shape if type(side) is int and side >= 0)
        dtype = kind.resolve()
        if len(sides) != len(shape) or len(raw) != math.prod(sides) * dtype.itemsize:
            raise pickle.UnpicklingError(f"an array of shape {shape} and type {dtype} has {len(raw)} bytes")
        array: NDArray[Any] = np.frombuffer(raw, dtype).reshape(sides, order="F" if is_fortran else "C")
        return array


class _Reconstruct(_StandIn):
    """`numpy.core.multiarray._reconstruct`: begins an array."""

    def __new__(cls, kind: object = None, *_: object) -> Self:
        if kind is not _ArrayType:
            raise pickle.UnpicklingError("it makes something else than an array")
        return _Array()  # type: ignore[return-value]


class _Encode(_StandIn):
    """`_codecs.encode`: how Python 3 writes bytes for protocol 2."""

    def __new__(cls, text: object = None, encoding: object = None) -> Self:
        if not isinstance(text, str) or encoding != "latin1":
            raise pickle.UnpicklingError("it encodes text in an unusual way")
        return text.encode("latin1")  # type: ignore[return-value]


_GLOBALS: dict[tuple[str, str], type[_StandIn]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy", "ndarray"): _ArrayType,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): _Encode,
}


class _Reader(pickle.Unpickler):
    """An unpickler that knows nothing but the stand-ins."""

    def find_class(self, module: str, name: str) -> type[_StandIn]:
        """Return a stand-in; the real thing is never looked up."""
        if (module, name) not in _GLOBALS:
            raise pickle.UnpicklingError(f"it wants to use {module}.{name}")
        return _GLOBALS[module, name]


def read_pickle(path: Path) -> Any:
    """Return the content of a pickle: dicts, lists, tuples, numbers, text, bytes and arrays of numbers.

    Raises WeightsError: no such file, a truncated one, or one that holds or wants anything else. Nothing was run.
    """
    try:
        with path.open("rb") as file:
            return _resolve(_Reader(file, encoding="latin1").load(), {})
    except pickle.UnpicklingError as error:
        if "truncated" in str(error) or "Ran out of input" in str(error):
            raise _complain_of_end(path) from error
        raise WeightsError(
            f"{path} must be a pickle of named arrays and nothing else, but {error}. Nothing in it was run. "
            "Do not open it with other programs unless you trust whoever made it."
        ) from error
    except EOFError as error:
        raise _complain_of_end(path) from error
    except FileNotFoundError as error:
        raise WeightsError(f"there is no file {path}.") from error
    except Exception as error:  # rubbish makes the unpickler raise whatever it stumbles on
        raise WeightsError(f"{path} must be a pickle of named arrays, but cannot be read: {error!r}.") from error


def _complain_of_end(path: Path) -> WeightsError:
    return WeightsError(f"{path} ends too early ({path.stat().st_size} bytes). Download it again.")


def _resolve(content: Any, known: dict[int, Any]) -> Any:
    """Put arrays in place of what stands in for them; a container that occurs often is resolved once."""
    if content is None or type(content) in (bool, int, float, str, bytes):
        return content
    if id(content) not in known:
        if isinstance(content, _Array):
            known[id(content)] = content.resolve()
        elif type(content) is dict:
            known[id(content)] = {_resolve(k, known): _resolve(v, known) for k, v in content.items()}
        elif type(content) in (list, tuple):
            known[id(content)] = type(content)(_resolve(value, known) for value in content)
        else:
            raise pickle.UnpicklingError(f"it holds a {type(content).__name__.lstrip('_')}")
    return known[id(content)]
