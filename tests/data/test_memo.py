import logging
from pathlib import Path

import pytest

from cityopt.data.memo import read_memo, write_memo


def test_memo_keeps_earlier_entries_when_others_are_added(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "memo.json"
    assert read_memo(path, 1) == {}
    write_memo(path, 1, {"a": [1]})
    write_memo(path, 1, {"b": {"c": 2}})
    assert read_memo(path, 1) == {"a": [1], "b": {"c": 2}}
    assert [entry.name for entry in path.parent.iterdir()] == ["memo.json"]


def test_memo_is_empty_when_its_version_differs(tmp_path: Path) -> None:
    write_memo(tmp_path / "memo.json", 1, {"a": 1})
    assert read_memo(tmp_path / "memo.json", 2) == {}


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"version": 1}', '{"version": 1, "entries": 3}'])
def test_memo_is_empty_and_says_so_when_it_is_broken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    path = tmp_path / "memo.json"
    path.write_text(content)
    with caplog.at_level(logging.WARNING, "cityopt"):
        assert read_memo(path, 1) == {}
    assert str(path) in caplog.text
    write_memo(path, 1, {"a": 1})
    assert read_memo(path, 1) == {"a": 1}
