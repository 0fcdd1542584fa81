"""Sweeps on PostgreSQL whose coordinators, workers and servers are killed at random moments."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.services
SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.parametrize(("coordinators", "more"), [(1, []), (3, ["--mlflow"])])
def test_study_on_a_server_is_as_if_undisturbed_when_killed_at_random(coordinators: int, more: list[str]):
    seed = random.SystemRandom().randrange(10**6)
    options = {"--kills": 10, "--coordinators": coordinators, "--seed": seed, "--storage": "postgresql"}
    words = [str(word) for pair in options.items() for word in pair]
    command = [sys.executable, str(SCRIPTS / "chaos"), *words, *more]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert answer.returncode == 0, f"{command}: {answer.stdout}{answer.stderr}"
    assert " 10 kills" in answer.stdout and "as if undisturbed" in answer.stdout
