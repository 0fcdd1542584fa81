"""A sweep that is killed at random moments, ten times here and a hundred times by `scripts/chaos`."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "kills"), [(1, 10)])
def test_study_is_as_if_undisturbed_when_killed_at_random(workers: int, kills: int) -> None:
    seed = random.SystemRandom().randrange(10**6)
    command = [sys.executable, str(SCRIPTS / "chaos"), "--kills", kills, "--workers", workers, "--seed", seed]
    answer = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=500)
    assert answer.returncode == 0, f"{command}: {answer.stdout}{answer.stderr}"
    assert f" {kills} kills" in answer.stdout and "as if undisturbed" in answer.stdout
