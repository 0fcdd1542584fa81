"""A sweep on PostgreSQL whose coordinator, workers and database are killed at random moments."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.services
SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.parametrize(("workers", "kills"), [(1, 10)])
def test_study_on_a_server_is_as_if_undisturbed_when_killed_at_random(workers: int, kills: int):
    seed = random.SystemRandom().randrange(10**6)
    options = {"--kills": kills, "--workers": workers, "--seed": seed, "--storage": "postgresql"}
    command = [sys.executable, str(SCRIPTS / "chaos"), *(str(word) for pair in options.items() for word in pair)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert answer.returncode == 0, f"{command}: {answer.stdout}{answer.stderr}"
    assert f" {kills} kills" in answer.stdout and "as if undisturbed" in answer.stdout
