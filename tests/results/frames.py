"""Frames as ``load`` returns them, for the tests of their analysis."""

from __future__ import annotations

import pandas as pd


def trials(*rows):
    """A trials table from rows; keys, seeds and the status are filled in."""
    frame = pd.DataFrame(list(rows))
    defaults = {
        "study": "s",
        "trial": [f"{number:012x}" for number in range(len(frame))],
        "status": "completed",
        "seed": 0,
    }
    for name, value in defaults.items():
        if name not in frame:
            frame[name] = value
    return frame
