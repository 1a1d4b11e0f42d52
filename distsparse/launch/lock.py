"""One writer for each trial."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class TrialInUse(OSError):  # noqa: N818  reads as what happened
    """Another process trains this trial now."""


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a trial's folder for a block; the system lets go of it when the process ends, however it ends.

    Raises:
        TrialInUse: another process holds it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.with_name(f".{folder.name}.lock")
    with file.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrialInUse(f"another process trains trial {folder.name} of {folder.parent} now") from None
        yield
