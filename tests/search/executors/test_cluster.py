import importlib.util

import pytest

from cityopt.errors import ConfigError
from cityopt.search.executors.cluster import find_cluster

NUMBERS = {"device": "cpu", "workers": None, "per_device": None}


def test_this_machine_is_meant_when_no_cluster_is_named():
    assert find_cluster("local", None, **NUMBERS) is None


@pytest.mark.parametrize(
    ("executor", "address", "said"),
    [
        ("rai", None, r"`--executor` must be local or ray, but got 'rai'\. Did you mean 'ray'\?"),
        ("local", "head:6379", r"`--address head:6379`.*--executor ray"),
        ("ray", "auto", r"pip install 'cityopt\[ray\]'"),
    ],
)
def test_error_says_how_to_name_a_cluster(executor, address, said, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=said):
        find_cluster(executor, address, **NUMBERS)
