"""Signals that ask a run to stop."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time

import pytest

from distsparse.launch.stop import stops_on_signals


def send(times: int = 1) -> None:
    """Send SIGINT to this process, in C code that Python's handlers wait for, as they do for Ray's."""

    def kill() -> None:
        for _ in range(times):
            time.sleep(0.03)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=kill)
    thread.start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 500_000 * (times + 1))  # some tenths of a second
    thread.join()


def twice() -> None:
    send()
    send()


def test_first_signal_only_asks() -> None:
    asked: list[None] = []
    handler = signal.getsignal(signal.SIGINT)
    with stops_on_signals(lambda: asked.append(None)):
        send()
        assert len(asked) == 1
    assert signal.getsignal(signal.SIGINT) is handler
    assert signal.set_wakeup_fd(-1) == -1, "left as it was"


def test_second_signal_interrupts_with_the_number_of_the_first() -> None:
    asked: list[None] = []
    with pytest.raises(KeyboardInterrupt) as raised, stops_on_signals(lambda: asked.append(None)):
        twice()
    assert raised.value.args == (signal.SIGINT,)
    assert len(asked) == 1


def test_two_signals_at_once_are_two() -> None:
    asked: list[None] = []
    with pytest.raises(KeyboardInterrupt) as raised, stops_on_signals(lambda: asked.append(None)):
        send(times=2)
    assert raised.value.args == (signal.SIGINT,)
    assert len(asked) == 1


def test_ignored_signal_stays_ignored() -> None:
    asked: list[None] = []
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stops_on_signals(lambda: asked.append(None)):
            send()
        assert not asked
    finally:
        signal.signal(signal.SIGINT, before)
