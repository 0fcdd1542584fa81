"""Ctrl-C once and twice, with real signals."""

import os
import signal

import pytest

from cityopt.search import interrupts
from cityopt.search.interrupts import Interrupt
from cityopt.search.observer import Observer


class Listener(Observer):
    def __init__(self):
        self.said, self.left = [], []

    def say(self, text):
        self.said.append(text)

    def leave(self, text):
        self.left.append(text)


class LeftError(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_is_remembered_and_the_second_ends_the_process(monkeypatch, number):
    def leave(code):
        raise LeftError(code)

    monkeypatch.setattr(interrupts.os, "_exit", leave)
    before, listener = signal.getsignal(number), Listener()
    interrupt = Interrupt(listener)
    with pytest.raises(LeftError, match=str(128 + number)), interrupt:
        assert not interrupt.is_set
        os.kill(os.getpid(), number)
        assert interrupt.is_set and len(listener.said) == 1 and "Ctrl-C again" in listener.said[0]
        assert listener.left == []
        os.kill(os.getpid(), number)
    assert len(listener.left) == 1 and "same command goes on" in listener.left[0] and "MLflow" in listener.left[0]
    assert interrupt.is_set and signal.getsignal(number) is before
