"""Ctrl-C and SIGTERM: the step that runs is finished and saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from distsparse.train.reporter import LocalReporter

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stops_on_signals(reporter: LocalReporter) -> Iterator[None]:
    """Let SIGINT and SIGTERM ask the training loop to stop; a second one does what it did before.

    A signal that is ignored stays so. Outside the main thread, as in a Tune trial, nothing changes.

    Raises:
        KeyboardInterrupt: the loop stopped; its argument is the signal's number.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {name: signal.getsignal(name) for name in SIGNALS if signal.getsignal(name) != signal.SIG_IGN}
    received = int(signal.SIGINT)

    def restore() -> None:
        for name, handler in before.items():
            signal.signal(name, handler)

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = number
        reporter.stopping = True
        restore()

    for name in before:
        signal.signal(name, ask)
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(received) from None
    finally:
        restore()
