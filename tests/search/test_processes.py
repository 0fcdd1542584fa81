"""A process is gone when it was here and is not; any other may be alive."""

import os
import subprocess
import sys

import pytest

from cityopt.search.processes import is_gone, name_process


@pytest.mark.skipif(sys.platform != "linux", reason="processes are named by /proc")
def test_process_is_gone_when_it_ended_on_this_machine():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        name = name_process(process.pid)
        assert name and not is_gone(name) and not is_gone(name_process(os.getpid()))
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_gone(name)  # though nobody has taken its exit code
        process.wait()
        assert is_gone(name) and name_process(process.pid) == ""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are named by /proc")
def test_process_may_be_alive_when_it_is_elsewhere_or_unknown():
    boot, namespace, pid, started = name_process(os.getpid()).split(" ")
    assert is_gone(f"{boot} {namespace} {pid} {int(started) + 1}")  # another has its pid by now
    assert not is_gone(f"another {namespace} {pid} {int(started) + 1}")
    assert not is_gone(f"{boot} pid:[1] {pid} {int(started) + 1}")  # a container on this machine
    assert not is_gone("")
