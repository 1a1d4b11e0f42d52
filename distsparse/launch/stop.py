"""Ctrl-C and SIGTERM: the step that runs is finished and saved."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stops_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Let SIGINT and SIGTERM call ``stop``, which lets the loop stop; a second one does what it did before.

    A signal that is ignored stays so. Outside the main thread, as in a Tune trial, nothing changes. Python
    calls a handler once for all signals that came while it waited for C code (Ray looks for them once a
    second), so they are counted where they arrive.

    Raises:
        KeyboardInterrupt: the block raised one; its argument is the signal's number.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {name: signal.getsignal(name) for name in SIGNALS if signal.getsignal(name) != signal.SIG_IGN}
    received: list[int] = []

    def restore() -> None:
        for name, handler in before.items():
            signal.signal(name, handler)

    with _arrivals() as arrivals:

        def ask(number: int, frame: FrameType | None) -> None:
            first = not received
            # Its own number, should somebody else listen for arrivals now.
            received.extend([name for name in arrivals() if name in before] or [number])
            if len(received) > 1:
                restore()
            if first:
                stop()
            if len(received) > 1:
                signal.raise_signal(received[-1])

        for name in before:
            signal.signal(name, ask)
        try:
            yield
        except KeyboardInterrupt:
            raise KeyboardInterrupt(received[0] if received else int(signal.SIGINT)) from None
        finally:
            restore()


@contextmanager
def _arrivals() -> Iterator[Callable[[], bytes]]:
    """Give a function that returns the numbers of the signals that came since its last call."""
    inbox, outbox = socket.socketpair()
    with inbox, outbox:
        inbox.setblocking(False)
        outbox.setblocking(False)
        before = signal.set_wakeup_fd(outbox.fileno(), warn_on_full_buffer=False)

        def arrivals() -> bytes:
            try:
                return inbox.recv(4096)
            except BlockingIOError:
                return b""

        try:
            yield arrivals
        finally:
            signal.set_wakeup_fd(before)
