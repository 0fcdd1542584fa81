"""Files of arrays are read, and whatever else a pickle can do is refused and not done."""

import os
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
from detectron2_writer import write_checkpoint

from cityopt.errors import WeightsError
from cityopt.models.pickles import read_pickle


class Call:
    """What an attacker pickles: a call of anything."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.function, self.arguments


def draw_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "matrix": rng.normal(size=(3, 4)).astype(np.float32),
        "column-major": np.asfortranarray(rng.normal(size=(3, 4))),
        "half": rng.normal(size=5).astype(np.float16),
        "big-endian": rng.normal(size=5).astype(">f4"),
        "numbers": np.arange(7),
        "truths": np.array([True, False]),
        "scalar": np.array(2.5),
        "nothing": np.zeros((0, 3), dtype=np.float32),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_are_read_as_pickle_reads_them(tmp_path: Path, protocol: int) -> None:
    arrays = draw_arrays()
    if protocol == 2:
        del arrays["nothing"]  # no bytes at all need another global there
    content = {"model": arrays, "__author__": "somebody", "shape": (1, [2, 3]), "none": None}
    path = tmp_path / "file.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    found = read_pickle(path)
    assert {key: found[key] for key in ("__author__", "shape", "none")} == {
        key: content[key] for key in ("__author__", "shape", "none")
    }
    assert list(found["model"]) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found["model"][name], array)
        assert found["model"][name].dtype == array.dtype


@pytest.mark.parametrize("protocol", [2, 3])
def test_arrays_are_read_under_the_module_name_of_numpy_1(tmp_path: Path, protocol: int) -> None:
    model = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
    path = write_checkpoint(tmp_path / "old.pkl", model, protocol=protocol)
    assert b"numpy.core.multiarray" in path.read_bytes() and b"_core" not in path.read_bytes()
    np.testing.assert_array_equal(read_pickle(path)["model"]["a"], model["a"])


def test_bytes_that_python_2_wrote_are_read(tmp_path: Path) -> None:
    """There the raw numbers are a `str`, which comes back as text in latin1."""
    raw = np.array([1.5, -2.0], dtype="<f4").tobytes()
    text = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U"
        + bytes([len(raw)])
        + raw
        + b"tb."
    )
    path = tmp_path / "two.pkl"
    path.write_bytes(text)
    np.testing.assert_array_equal(pickle.loads(text, encoding="latin1"), [1.5, -2.0])
    np.testing.assert_array_equal(read_pickle(path), [1.5, -2.0])


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("attack", ["system", "eval", "getattr", "import", "numpy-load", "open", "ndarray", "codec"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, protocol: int, attack: str) -> None:
    mark, path = tmp_path / "was here", tmp_path / "evil.pkl"
    calls = {
        "system": Call(os.system, f"touch '{mark}'"),
        "eval": Call(eval, f"open({str(mark)!r}, 'w').close()"),
        "getattr": Call(getattr, Call(__import__, "os"), "getcwd"),
        "import": Call(__import__, "antigravity"),
        "numpy-load": Call(np.load, str(path)),
        "open": Call(open, str(mark), "w"),
        "ndarray": Call(np.ndarray, (10**9,)),
        "codec": Call(__import__("codecs").encode, b"x", "hex"),
    }
    content = {"model": {"a": np.zeros(2, dtype=np.float32), "b": calls[attack]}}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(WeightsError, match="Nothing in it was run"):
        read_pickle(path)
    assert not mark.exists()


def craft(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


@pytest.mark.parametrize(
    "body",
    [
        b"cnumpy\nndarray\n}U\x03fooK\x01sb",  # BUILD on the stand-in's class
        b"cnumpy\nndarray\nN}U\x03fooK\x01s\x86b",  # the same, by slots
        b"c_codecs\nencode\nN}U\x0c__defaults__)s\x86b",
        b"cnumpy.core.multiarray\n_reconstruct\nN}U\x08__call__K\x01s\x86b",
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\ndtype\n\x85R",  # begins something that is no array
        b"cnumpy\ndtype\nU\x01OK\x00K\x01\x87R",  # a type alone
        b"cnumpy\nndarray.__class__\n",
        b"cbuiltins\neval\n",
        b"K\x01Q",  # a persistent id
        b"\x82\x01",  # an extension's code
    ],
)
def test_crafted_programs_are_refused(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "crafted.pkl"
    path.write_bytes(craft(body))
    with pytest.raises(WeightsError):
        read_pickle(path)
    test_arrays_are_read_under_the_module_name_of_numpy_1(tmp_path, 3)  # the reader is as good as before


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "objects.pkl"
    path.write_bytes(pickle.dumps({"a": np.array([{}, []], dtype=object)}, protocol=3))
    with pytest.raises(WeightsError, match="array"):
        read_pickle(path)


def test_wrong_lengths_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.pkl"
    whole = pickle.dumps(np.arange(3, dtype=np.float32), protocol=3)
    assert whole.count(b"K\x03\x85") == 1
    path.write_bytes(whole.replace(b"K\x03\x85", b"K\x04\x85"))
    with pytest.raises(WeightsError, match="12 bytes"):
        read_pickle(path)


def test_containers_within_containers_are_resolved_once(tmp_path: Path) -> None:
    """A few lists that hold each other twice would be 2^60 lists if each were visited where it occurs."""
    bomb: list[object] = []
    for _ in range(60):
        bomb = [bomb, bomb]
    path = tmp_path / "bomb.pkl"
    path.write_bytes(pickle.dumps(bomb, protocol=2))
    assert len(read_pickle(path)) == 2


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_named_as_such(tmp_path: Path, share: float) -> None:
    whole = pickle.dumps({"model": draw_arrays()}, protocol=2)
    path = tmp_path / "cut.pkl"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(WeightsError, match=r"cut\.pkl (ends too early|must be)"):
        read_pickle(path)


def test_rubbish_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rubbish.pkl"
    for seed in range(20):
        path.write_bytes(zlib.compress(np.random.default_rng(seed).bytes(200)))
        with pytest.raises(WeightsError):
            read_pickle(path)
    with pytest.raises(WeightsError, match="no file"):
        read_pickle(tmp_path / "none.pkl")
