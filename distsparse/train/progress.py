"""Progress of a long run: a bar with time left on a terminal, plain lines in a log file."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm


class Progress:
    """A bar over steps or trials, with one line per event above it. Silent unless ``enabled``."""

    def __init__(self, total: int, *, initial: int = 0, unit: str, enabled: bool) -> None:
        self._enabled = enabled
        self._below: list[Any] = []
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

    @property
    def on_terminal(self) -> bool:
        """Whether there is a bar: without a terminal, or silent, there is none."""
        return not self._bar.disable

    def below(self, lines: Sequence[str]) -> None:
        """Replace the lines below the bar; nothing where there is none."""
        if not self.on_terminal:
            return
        while len(self._below) < len(lines):
            position = len(self._below) + 1
            self._below.append(tqdm(bar_format="{desc}", position=position, leave=False, file=sys.stderr))
        for index, bar in enumerate(self._below):
            bar.set_description_str(lines[index] if index < len(lines) else "")

    def close(self) -> None:
        """Leave the bar as it stands, and nothing below it."""
        for bar in self._below:
            bar.close()
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
