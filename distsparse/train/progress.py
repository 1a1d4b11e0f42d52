"""Progress of a long run: a bar with time left on a terminal, plain lines in a log file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm


class Progress:
    """A bar over steps or trials, with one line per event above it. Silent unless ``enabled``."""

    def __init__(self, total: int, *, initial: int = 0, unit: str, enabled: bool) -> None:
        self._enabled = enabled
        self._bar = tqdm(
            total=total,
            initial=initial,
            unit=unit,
            dynamic_ncols=True,
            smoothing=0.05,
            mininterval=0.2,
            # A bar in a log file would be thousands of lines; the events say enough there.
            disable=not (enabled and sys.stderr.isatty()),
            file=sys.stderr,
        )

    def advance(self, count: int = 1) -> None:
        """Count finished steps."""
        self._bar.update(count)

    def line(self, text: str) -> None:
        """Print an event, above the bar where there is one."""
        if self._enabled:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


def describe(summary: Mapping[str, Any], epochs: int) -> str:
    """Return one line for an evaluation, from the run's summary at that point."""
    parts = [
        f"epoch {summary['epochs']}/{epochs}",
        f"step {summary['steps']}",
        f"loss {summary['train_loss']:.4f}",
        f"test accuracy {summary['accuracy']:.4f}",
        f"sparsity {summary['sparsity']:.4f}",
        f"{summary['samples_per_s']:,.0f} samples/s",
    ]
    if "validation_accuracy" in summary:
        parts.insert(3, f"validation accuracy {summary['validation_accuracy']:.4f}")
    if summary["stopped_early"]:
        parts.append("stopped early")
    return "  ".join(parts)
