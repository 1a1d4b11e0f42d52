from itertools import groupby

import pytest
import torch
from torch import nn

from distsparse.export import CsrLinear, Latency, compare, measure
from distsparse.export import latency as latency_module
from distsparse.export.latency import _sample_in_turns


class FakeClock:
    """Time that only calls take."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def __call__(self):
        return self.now

    def call(self, name, seconds):
        def run():
            self.now += seconds
            self.log.append(name)

        return run


class Spy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.seen = []

    def forward(self, x):
        state = (self.training, torch.is_inference_mode_enabled(), torch.get_num_threads())
        self.seen.append((tuple(x.shape), x.dtype, *state))
        return self.layer(x.float())


def test_short_calls_fill_two_budgets_in_turns_and_have_settled():
    clock = FakeClock()
    calls = [clock.call("a", 0.001), clock.call("b", 0.002)]
    (a, b), stable = _sample_in_turns(calls, min_repeats=5, budget_s=0.3, clock=clock)
    assert stable
    assert {round(t, 6) for t in a} == {0.001}
    assert {round(t, 6) for t in b} == {0.002}
    # Ten slices of 30 ms in a budget, one call of every slice spent on warming up.
    assert 20 * 29 <= len(a) <= 20 * 31
    assert 20 * 14 <= len(b) <= 20 * 16
    turns = [name for name, _ in groupby(clock.log)]
    assert turns == ["a", "b"] * (len(turns) // 2)
    assert len(turns) // 2 in (21, 22)  # the first turn is the warm-up of each


def test_repeats_until_the_medians_settle():
    clock = FakeClock()
    calls = 0

    def slower_at_first():
        nonlocal calls
        calls += 1
        clock.now += 0.002 if calls < 250 else 0.001

    (times,), stable = _sample_in_turns([slower_at_first], min_repeats=1, budget_s=0.3, clock=clock)
    assert stable
    assert 3 * 0.3 <= clock.now < 8 * 0.3
    assert sorted(times)[len(times) // 2] == pytest.approx(0.001)


def test_a_busy_machine_is_given_up_after_eight_budgets():
    clock = FakeClock()

    def ever_slower():
        clock.now += 0.001 + 0.01 * clock.now

    _, stable = _sample_in_turns([ever_slower], min_repeats=1, budget_s=0.1, clock=clock)
    assert not stable
    assert 0.8 <= clock.now < 0.9


def test_slow_calls_are_repeated_min_repeats_times():
    clock = FakeClock()
    (times,), stable = _sample_in_turns([clock.call("a", 0.05)], min_repeats=20, budget_s=0.3, clock=clock)
    assert len(times) == 24  # four budgets of six
    assert stable


def test_very_slow_calls_stop_at_eight_budgets():
    clock = FakeClock()
    (a, b), stable = _sample_in_turns(
        [clock.call("a", 0.75), clock.call("b", 1.25)], min_repeats=20, budget_s=0.25, clock=clock
    )
    assert len(a) == len(b) == 2  # 1 s per side and turn, until 2 s
    assert clock.now == 3 * 2.0
    assert not stable  # fewer repeats than were asked for
    (once,), stable = _sample_in_turns([clock.call("a", 9.0)], min_repeats=20, budget_s=0.3, clock=clock)
    assert len(once) == 1
    assert not stable


def test_a_slow_first_call_of_a_slice_is_not_counted():
    clock = FakeClock()
    durations = iter([0.02, *([0.0205] + [0.001] * 10) * 100])

    def cold_then_warm():
        clock.now += next(durations)

    (times,), _ = _sample_in_turns([cold_then_warm], min_repeats=1, budget_s=0.3, clock=clock)
    assert {round(t, 6) for t in times} == {0.001}


def test_measures_in_eval_and_inference_mode_and_restores():
    model = Spy().train()
    model.layer.eval()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        latency = measure(model, (4,), batch_size=3, num_threads=1, min_repeats=4, budget_s=0.002)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert set(model.seen) == {((3, 4), torch.float32, False, True, 1)}
    assert (model.training, model.layer.training) == (True, False)
    assert not torch.is_inference_mode_enabled()
    assert latency.num_repeats >= 4
    assert (latency.batch_size, latency.num_threads) == (3, 1)
    assert 0 < latency.p10_ms <= latency.median_ms <= latency.p90_ms


def test_keeps_the_thread_count_unless_told():
    assert measure(Spy(), (4,), budget_s=0.001).num_threads == torch.get_num_threads()


def test_tokens_as_input():
    model = Spy()
    measure(model, (4,), budget_s=0.001, dtype=torch.long)
    assert {seen[1] for seen in model.seen} == {torch.long}


def test_summary_in_milliseconds(monkeypatch):
    times = [k / 1000 for k in range(11, 0, -1)]
    monkeypatch.setattr(latency_module, "_sample_in_turns", lambda calls, **_: ([times], True))
    latency = measure(nn.Linear(2, 2), (2,), batch_size=7, num_threads=1)
    assert latency == Latency(
        median_ms=6.0, p10_ms=2.0, p90_ms=10.0, num_repeats=11, batch_size=7, num_threads=1, stable=True
    )


def test_compare_covers_formats_and_batch_sizes(monkeypatch):
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 5))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.view(-1)[: int(0.9 * layer.weight.numel())] = 0
    converted = []
    original = CsrLinear.forward
    monkeypatch.setattr(CsrLinear, "forward", lambda self, x: converted.append(len(x)) or original(self, x))
    measured = compare(model, (40,), batch_sizes=(1, 8), num_threads=1, min_repeats=3, budget_s=0.005)
    assert set(measured) == {("dense", 1), ("csr", 1), ("dense", 8), ("csr", 8)}
    assert all(isinstance(latency, Latency) for latency in measured.values())
    assert {latency.batch_size for (_, size), latency in measured.items() if size == 8} == {8}
    assert set(converted) == {1, 8}
    assert model.training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"num_threads": 0}, "num_threads = 0"),
        ({"min_repeats": 0}, "min_repeats = 0"),
        ({"budget_s": 0.0}, "budget_s = 0"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        measure(nn.Linear(2, 2), (2,), **arguments)
