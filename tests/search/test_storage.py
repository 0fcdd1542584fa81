"""Databases that cannot be opened, where no server is needed to find that out."""

import pytest
import sqlalchemy

from cityopt.errors import StoreError
from cityopt.search.storage import open_database


@pytest.mark.parametrize("kind", [ModuleNotFoundError, ImportError], ids=["none", "one without its library"])
def test_missing_driver_is_named_with_the_way_out(kind: type[ImportError], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise kind("no pq wrapper available")

    monkeypatch.setattr(sqlalchemy, "create_engine", fail)
    with pytest.raises(StoreError, match=r"ann:\*\*\*@h/db.*pip install 'cityopt\[postgres\]'"):
        open_database("postgresql+psycopg://ann:rosebud@h/db")
