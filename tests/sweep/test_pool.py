from __future__ import annotations

import itertools

import pytest

from distsparse.sweep.pool import Failure, decisive

INTERRUPTED = Failure("interrupted", interrupted=True)
BROKEN = Failure("RuntimeError: connection closed by peer (worker 1)", may_pass=True)
FULL = Failure("OSError: no space left on device (worker 0)")


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ([], None),
        ([INTERRUPTED, INTERRUPTED], INTERRUPTED),
        ([BROKEN, FULL], FULL),
        ([FULL, INTERRUPTED], FULL),  # it could not save what the others take for saved
        ([BROKEN, INTERRUPTED], BROKEN),
        ([INTERRUPTED, BROKEN, FULL], FULL),
    ],
)
def test_of_the_workers_failures_the_lasting_one_counts(failures, expected):
    for order in itertools.permutations(failures):
        assert decisive(order) is expected


def test_of_two_alike_the_lower_rank_counts():
    other = Failure("ValueError: another (worker 1)")
    assert decisive([FULL, other]) is FULL
    assert decisive([other, FULL]) is other
