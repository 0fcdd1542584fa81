"""The benchmarks of whole sweeps, in their quick form: that they run, and which rows they print."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.services
BENCH = Path(__file__).parents[2] / "scripts" / "bench"


def bench(*names: str, **environment: str) -> dict[str, dict[str, object]]:
    command = [sys.executable, str(BENCH), *names, "--quick", "--json"]
    answer = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert answer.returncode == 0, answer.stderr
    return {row["name"]: row for row in json.loads(answer.stdout)}


def test_null_trials_are_compared_with_a_process_each_and_plain_optuna():
    found = bench("trials")
    assert list(found) == [*(f"trials-workers-{n}" for n in (1, 4, 8)), "trials-optimize", "trials-subprocess"]
    assert all(row["ours"] > 0 and row["peer"] > 0 for row in found.values())
    assert found["trials-subprocess"]["target"] == "ratio >= 10"


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_stored_trials_are_multiplied_on_either_database(engine: str, request: pytest.FixtureRequest):
    address = {"CITYOPT_STORAGE": request.getfixturevalue("database")} if engine == "postgresql" else {}
    found = bench("stored-trials", **address)
    assert [row["target"] for row in found.values()] == ["ratio <= 1.5", None, "ours <= 2", "ours <= 5"]
    assert all(f"on {engine}" in row["unit"] for row in found.values())


def test_pause_between_trials_is_measured():
    assert bench("between-trials")["between-trials"]["target"] == "ours <= 1"
