"""An optimizer step from zero to zero is not followed by a pass over the layer; all others are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor, nn, optim

from distsparse.core import Sparsifier, zeros
from distsparse.methods import rigl, rigl_structured, static
from distsparse.ops.keep import Keep

MOMENTUM = partial(optim.SGD, lr=0.1, momentum=0.9)


class Run:
    """A small network in training, which counts the passes over layers after an optimizer step."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        make: Callable[..., optim.Optimizer] = MOMENTUM,
        method: Callable[..., object] = static,
    ) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        self.weights = [self.model[0].weight, self.model[2].weight]
        self.optimizer = make(self.model.parameters())
        self.sparsifier = Sparsifier.attach(
            method(sparsity=0.75), self.model, self.optimizer, total_steps=1000, seed=0
        )
        self.sparsifier.initialize()
        self.passes: list[int] = []
        apply = Keep.apply
        monkeypatch.setattr(Keep, "apply", lambda keep, *all_: (self.passes.append(1), apply(keep, *all_)))

    def backward(self, *, sparsify: bool = True) -> None:
        self.optimizer.zero_grad()
        self.model(torch.randn(5, 6)).square().sum().backward()
        if sparsify:
            self.sparsifier.step()

    def optimizer_step(self) -> int:
        self.passes.clear()
        self.optimizer.step()
        return len(self.passes)

    def step(self) -> int:
        self.backward()
        return self.optimizer_step()

    def inactive(self) -> list[Tensor]:
        """Weight and state where inactive, of all layers."""
        found = []
        for mask, weight in zip(self.sparsifier.topology.masks.values(), self.weights, strict=True):
            held = [weight.detach(), *self.optimizer.state[weight].values()]
            found += [each[~mask] for each in held if each.shape == weight.shape]
        return found

    def is_zero(self) -> bool:
        return all(bool((each == 0).all()) for each in self.inactive())


TRUSTED = {
    "sgd": partial(optim.SGD, lr=0.1),
    "momentum": partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "fused": partial(optim.SGD, lr=0.1, momentum=0.9, fused=True),
    "adam": partial(optim.Adam, weight_decay=0.1, amsgrad=True),
    "adamw": partial(optim.AdamW, foreach=True),
}


@pytest.mark.parametrize("make", TRUSTED.values(), ids=TRUSTED)
def test_no_pass_where_all_was_zero(
    make: Callable[..., optim.Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(monkeypatch, make)
    for _ in range(20):
        assert run.step() == 0
        assert run.is_zero()
        assert not any(each.signbit().any() for each in run.inactive())


def test_a_closure_makes_gradients_within_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    run.step()
    run.backward()
    run.passes.clear()

    def closure() -> float:
        run.backward(sparsify=False)
        return 0.0

    run.optimizer.step(closure)
    assert len(run.passes) == 2
    assert run.is_zero()


class Own(optim.SGD):
    pass


OTHERS = {
    "another": partial(optim.RMSprop, lr=0.01),
    "a subclass": partial(Own, lr=0.1),
    "adam that divides by zero": partial(optim.Adam, eps=0.0),
    "momentum of -0": partial(optim.SGD, lr=0.1, momentum=0.9, maximize=True),
    "a rate that is a tensor": partial(optim.Adam, lr=torch.tensor(0.1), foreach=False),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_others_are_not_trusted(
    make: Callable[..., optim.Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(monkeypatch, make)
    for _ in range(3):
        assert run.step() == 2
        assert run.is_zero()


@pytest.mark.parametrize(
    ("dtype", "eps", "keeps"),
    [
        (torch.float32, 1e-8, True),
        (torch.bfloat16, 1e-8, True),
        (torch.float16, 1e-8, False),
        (torch.float16, 1e-4, True),
    ],
)
def test_a_denominator_is_not_zero_in_the_weights_own_precision(
    dtype: torch.dtype, eps: float, keeps: bool
) -> None:
    weight = nn.Parameter(torch.zeros(3, dtype=dtype))
    optimizer = optim.Adam([weight], eps=eps)
    weight.grad = torch.zeros(3, dtype=dtype)
    optimizer.step()
    assert bool((weight == 0).all()) == zeros.keeps_zeros(optimizer) == keeps


def noise(run: Run) -> Callable[..., None]:
    def write(*_: object) -> None:
        for weight in run.weights:
            assert weight.grad is not None
            weight.grad.add_(1)

    return write


def centred(run: Run) -> Callable[..., None]:
    def write(*_: object) -> None:
        with torch.no_grad():
            for weight in run.weights:
                weight.sub_(weight.mean(1, keepdim=True))

    return write


@pytest.mark.parametrize("attached_first", [True, False])
@pytest.mark.parametrize("hook", [noise, centred])
def test_hooks_between_ours_and_the_step(
    hook: Callable[[Run], Callable[..., None]], attached_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Run] = []

    def make(parameters: Iterator[nn.Parameter]) -> optim.Optimizer:
        optimizer = MOMENTUM(parameters)
        if not attached_first:
            register(optimizer)
        return optimizer

    def register(optimizer: optim.Optimizer) -> None:
        registers = optimizer.register_step_pre_hook if hook is noise else optimizer.register_step_post_hook
        registers(lambda *given: hook(made[0])(*given))

    made.append(Run(monkeypatch, make))
    if attached_first:
        register(made[0].optimizer)
    ours_is_last = attached_first == (hook is centred)
    for _ in range(5):
        made[0].step()
        if not (attached_first and hook is centred):  # which writes after us, as it would with any optimizer
            assert made[0].is_zero()
        assert ours_is_last or len(made[0].passes) == 2


def test_steps_of_ours_without_the_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    masks = list(run.sparsifier.topology.masks.values())
    for _ in range(6):
        run.optimizer.zero_grad()  # so that the next gradients may lie where these did
        for _ in range(2):  # and with accumulated ones
            run.model(torch.randn(5, 6)).square().sum().backward()
            run.sparsifier.step()
            for weight, mask in zip(run.weights, masks, strict=True):
                assert weight.grad is not None
                assert (weight.grad[~mask] == 0).all()


def test_gradients_that_have_no_count_of_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    with torch.inference_mode():
        gradients = [torch.ones_like(parameter) for parameter in run.model.parameters()]
    for parameter, gradient in zip(run.model.parameters(), gradients, strict=True):
        parameter.grad = gradient
    run.sparsifier.step()
    assert run.optimizer_step() == 2
    assert run.is_zero()


def test_a_model_can_be_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    run.step()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        run.backward()
        run.model.load_state_dict({name: value.clone() for name, value in run.model.state_dict().items()})
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    run.optimizer_step()
    assert run.is_zero()


def write_weights(run: Run) -> None:
    run.backward()
    with torch.no_grad():
        run.weights[0].add_(1)


def load_weights(run: Run) -> None:
    run.backward()
    run.model.load_state_dict({name: torch.ones_like(v) for name, v in run.model.state_dict().items()})


def other_memory(run: Run) -> None:
    run.backward()
    run.weights[0].data = torch.ones(8, 6)


def write_state(run: Run) -> None:
    run.backward()
    run.optimizer.state[run.weights[0]]["momentum_buffer"].add_(1)


def load_state(run: Run) -> None:
    run.backward()
    state = run.optimizer.state_dict()
    for values in state["state"].values():
        values["momentum_buffer"] = torch.ones_like(values["momentum_buffer"])
    run.optimizer.load_state_dict(state)


def write_gradient(run: Run) -> None:
    run.backward()
    assert run.weights[0].grad is not None
    run.weights[0].grad.add_(1)


def replace_gradient(run: Run) -> None:
    run.backward()
    run.weights[0].grad = torch.ones(8, 6)


def no_sparsifier_step(run: Run) -> None:
    run.backward(sparsify=False)


CHANGES = [
    write_weights, load_weights, other_memory, write_state, load_state, write_gradient, replace_gradient,
    no_sparsifier_step,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_written_to_is_zeroed(
    change: Callable[[Run], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(monkeypatch)
    for _ in range(3):
        run.step()
    change(run)
    assert run.optimizer_step() in (1, 2)
    assert run.is_zero()
    run.step()  # the momentum that was written has a tensor of its own by now
    assert run.step() == 0


@pytest.mark.parametrize("change", CHANGES)
def test_and_would_not_be_zero_otherwise(
    change: Callable[[Run], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(monkeypatch)
    for _ in range(3):
        run.step()
    change(run)
    monkeypatch.setattr(zeros.InactiveZeros, "_stays_zero", lambda self, name: True)
    run.optimizer_step()
    assert not run.is_zero()


def test_a_write_that_torch_does_not_count_is_zeroed_later(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    run.step()
    run.weights[0].data.add_(1)
    nums = [run.step() for _ in range(zeros._ALL_EVERY)]
    assert sum(nums) == 2
    assert run.is_zero()


def test_an_update_is_followed_by_steps_without_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, method=partial(rigl, delta_T=5, grow_init="normal"))
    nums = [run.step() for _ in range(20)]
    # What has started a grown weight was a write.
    assert set(nums) == {0, 2}
    assert nums.count(0) >= 12
    assert run.is_zero()


def test_closed_channels_are_zeroed_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, method=rigl_structured)
    assert run.step() > 0


def test_an_optimizer_may_hold_whole_numbers() -> None:
    whole = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)
    assert zeros.keeps_zeros(optim.Adam([nn.Parameter(torch.zeros(3)), whole]))
