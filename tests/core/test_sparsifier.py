from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from distsparse.core import (
    Context,
    Method,
    Move,
    Rewired,
    Sparsifier,
    Topology,
    allocator,
    magnitude,
    prune,
)
from distsparse.methods import dense, gmp, imp, rigl, rigl_structured, set_, static
from distsparse.ops.allocation import num_active
from distsparse.ops.digest import mask_digest, to_hex
from distsparse.ops.schedule import constant, cubic

SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)


def network(seed: int = 0, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 16, 30),
        nn.ReLU(),
        nn.Linear(30, 4),
    ).to(dtype)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def backward(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(8, 3, 4, 4, generator=generator).to(next(model.parameters()).dtype)
    labels = torch.randint(4, (8,), generator=generator)
    model.zero_grad()
    nn.functional.cross_entropy(model(inputs), labels).backward()


def attach(
    method: Method, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, *, total_steps: int = 20
) -> Sparsifier:
    return Sparsifier.attach(method, model, optimizer or sgd(model), total_steps=total_steps, seed=0)


def inactive_weights(sparsifier: Sparsifier) -> Tensor:
    """All weights, gradients too, at inactive positions."""
    values = []
    for name, weight in sparsifier.weights.items():
        inactive = ~sparsifier.topology.masks[name]
        values.append(weight.matrix(weight.parameter.detach())[inactive])
        if weight.parameter.grad is not None:
            values.append(weight.matrix(weight.parameter.grad)[inactive])
    return torch.cat(values)


def assert_exact(sparsifier: Sparsifier, sparsity: float) -> None:
    topology = sparsifier.topology
    active = {name: int(mask.sum()) for name, mask in topology.masks.items()}
    assert active == topology.targets
    assert sum(active.values()) == num_active(topology.num_weights, sparsity)
    assert (inactive_weights(sparsifier) == 0).all()


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_counts_are_exact_after_every_update(sparsity: float) -> None:
    model = network()
    optimizer = sgd(model)
    sparsifier = attach(rigl(sparsity=sparsity, delta_T=3, T_end=1.0), model, optimizer)
    sparsifier.initialize()
    assert_exact(sparsifier, sparsity)
    counts = dict(sparsifier.topology.targets)
    updates = []
    for step in range(20):
        backward(model, step)
        event = sparsifier.step()
        assert_exact(sparsifier, sparsity)
        if event:
            updates.append(event.step)
            assert {layer.name: layer.nnz for layer in event.layers} == counts
        if not (event and event.skip_optimizer_step):
            optimizer.step()
        assert_exact(sparsifier, sparsity)
    assert updates == sparsifier.update_schedule() == [3, 6, 9, 12, 15, 18]
    assert sparsifier.statistics.num_updates == 6


def test_sparsity_rises_along_its_schedule() -> None:
    update = (prune(magnitude, allocation=allocator("erk")),)
    model = network()
    sparsifier = attach(Method(sparsity=cubic(0.96), update=update, every=5, stop=20), model, total_steps=21)
    sparsifier.initialize()
    assert sparsifier.topology.sparsity == 0
    seen = []
    for step in range(21):
        backward(model, step)
        if sparsifier.step():
            seen.append(sparsifier.topology.sparsity)
            assert_exact(sparsifier, cubic(0.96)(step / 20))
    # 0.96 (1 - (1 - p)³) at 1/4, 1/2, 3/4, 1
    assert seen == pytest.approx([0.555, 0.84, 0.945, 0.96], abs=1e-4)


def test_attach_touches_nothing() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sparsifier = attach(rigl(), model, total_steps=1000)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert sparsifier.topology.sparsity == 0


def test_biases_stay_dense() -> None:
    model = network()
    biases = {n: p.detach().clone() for n, p in model.named_parameters() if n.endswith("bias")}
    attach(static(sparsity=0.99), model).initialize()
    assert biases
    assert all(torch.equal(biases[n], p) for n, p in model.named_parameters() if n in biases)


def test_include_and_exclude() -> None:
    model = network()
    sparsifier = Sparsifier.attach(
        static(sparsity=0.9), model, sgd(model), total_steps=5, seed=0, exclude=("7.weight",)
    )
    sparsifier.initialize()
    assert list(sparsifier.weights) == ["0.weight", "2.weight", "5.weight"]
    assert (model[7].weight != 0).all()


def test_attach_errors() -> None:
    model = network()
    with pytest.raises(ValueError, match="total_steps = 0: must be at least 1"):
        attach(rigl(), model, total_steps=0)
    with pytest.raises(ValueError, match="T_end = 21"):
        attach(rigl(T_end=21), model, total_steps=20)
    with pytest.raises(ValueError, match=r"does not hold the sparsified weight '0\.weight'"):
        attach(rigl(), model, torch.optim.SGD(model[5:].parameters(), lr=0.1))


def test_an_update_needs_gradients() -> None:
    model = network()
    sparsifier = attach(rigl(delta_T=1), model)
    sparsifier.initialize()
    assert sparsifier.step() is None
    with pytest.raises(ValueError, match=r"weight '0\.weight' has no gradient at step 1"):
        sparsifier.step()


def test_random_growth_needs_none() -> None:
    sparsifier = attach(set_(delta_T=1), network())
    sparsifier.initialize()
    sparsifier.step()
    assert sparsifier.step() is not None


def test_gradient_of_an_inactive_weight_is_the_outer_product() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 5, dtype=torch.float64)
    sparsifier = attach(static(sparsity=0.8), layer)
    sparsifier.initialize()
    inputs = torch.randn(7, 6, dtype=torch.float64)
    outputs = layer(inputs)
    outputs.retain_grad()
    (outputs.tanh() ** 2).mean().backward()
    expected = torch.einsum("bo,bi->oi", outputs.grad, inputs)
    inactive = ~sparsifier.topology.masks["weight"]
    assert inactive.sum() == 24
    assert (layer.weight[inactive] == 0).all()
    assert (layer.weight.grad[inactive] != 0).all()
    torch.testing.assert_close(layer.weight.grad, expected)
    sparsifier.step()
    assert (layer.weight.grad[inactive] == 0).all()
    torch.testing.assert_close(layer.weight.grad[~inactive], expected[~inactive])


def rigged(weight: list[list[float]], gradient: list[list[float]], **keywords: float) -> tuple:
    """A 2 × 3 layer with chosen weights, momentum and gradient, just before an update that drops half."""
    layer = nn.Linear(3, 2, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0, momentum=0.9)
    sparsifier = attach(rigl(delta_T=1, alpha=0.5, alpha_schedule="constant", **keywords), layer, optimizer)
    mask = torch.tensor([[True, True, False], [True, True, False]])
    state = sparsifier.state_dict()
    state.update(step=1, masks={"weight": mask}, targets={"weight": 4})
    layer.weight.data = torch.tensor(weight)
    layer.weight.grad = torch.tensor([[1.0, 2.0, 0.0], [3.0, 4.0, 0.0]])
    optimizer.step()  # momentum = that gradient
    layer.weight.data = torch.tensor(weight)
    layer.weight.grad = torch.tensor(gradient)
    sparsifier.load_state_dict(state)
    return layer, optimizer, sparsifier


WEIGHT = [[0.5, -0.1, 0.0], [0.2, -0.9, 0.0]]


def test_grown_weights_start_at_zero_and_dropped_ones_lose_their_momentum() -> None:
    layer, optimizer, sparsifier = rigged(WEIGHT, [[0.1, 0.3, -2.0], [0.4, 0.2, 0.5]])
    event = sparsifier.step()
    assert event.skip_optimizer_step
    assert (event.num_dropped, event.num_grown) == (2, 2)
    assert layer.weight.tolist() == [[0.5, 0, 0], [0, pytest.approx(-0.9), 0]]
    assert optimizer.state[layer.weight]["momentum_buffer"].tolist() == [[1, 0, 0], [0, 4, 0]]
    # The gradient is masked by the new topology: what was grown has one, what was dropped has none.
    expected = torch.tensor([[0.1, 0.0, -2.0], [0.0, 0.2, 0.5]])
    assert torch.equal(layer.weight.grad, expected)


def test_a_weight_dropped_and_grown_again_keeps_value_and_momentum() -> None:
    layer, optimizer, sparsifier = rigged(WEIGHT, [[0.1, 3.0, -2.0], [0.4, 0.2, 0.5]])
    event = sparsifier.step()
    assert sparsifier.topology.masks["weight"].tolist() == [[True, True, True], [False, True, False]]
    assert torch.equal(layer.weight, torch.tensor([[0.5, -0.1, 0.0], [0.0, -0.9, 0.0]]))
    assert optimizer.state[layer.weight]["momentum_buffer"].tolist() == [[1, 2, 0], [0, 4, 0]]
    # It did not change, so it is neither dropped nor grown.
    assert (event.num_dropped, event.num_grown) == (1, 1)


def test_without_the_option_the_optimizer_steps_after_an_update() -> None:
    layer, optimizer, sparsifier = rigged(
        WEIGHT, [[0.1, 0.3, -2.0], [0.4, 0.2, 0.5]], skip_optimizer_step=False
    )
    event = sparsifier.step()
    assert not event.skip_optimizer_step
    optimizer.step()
    # lr 1: w - (0.9 m + g); the grown weights in the last column take their first gradient at the next step.
    expected = torch.tensor([[0.5 - 0.9 - 0.1, 0, 0], [0, -0.9 - 3.6 - 0.2, 0]])
    torch.testing.assert_close(layer.weight.detach(), expected)


def test_initialize_never_asks_to_skip_a_step() -> None:
    event = attach(rigl(), network(), total_steps=1000).initialize()
    assert event.step == 0
    assert not event.skip_optimizer_step


def test_a_dense_layer_stays_dense() -> None:
    model = network()
    # ERK at 0.5 saturates small layers.
    sparsifier = attach(rigl(sparsity=0.5, delta_T=1, T_end=1.0), model)
    sparsifier.initialize()
    full = [name for name, density in sparsifier.topology.density.items() if density == 1]
    assert full
    for step in range(6):
        backward(model, step)
        event = sparsifier.step()
        assert all(sparsifier.topology.density[name] == 1 for name in full)
        if event:
            assert all(
                layer.num_dropped == layer.num_grown == 0 for layer in event.layers if layer.name in full
            )


def changes(before: dict[str, Tensor], event: Rewired, sparsifier: Sparsifier) -> None:
    for layer in event.layers:
        old, new = before[layer.name], sparsifier.topology.masks[layer.name]
        assert layer.num_dropped == int((old & ~new).sum())
        assert layer.num_grown == int((new & ~old).sum())
        assert layer.nnz == int(new.sum())
        assert layer.num_weights == new.numel()
        assert layer.fraction == layer.num_dropped / int(old.sum())
        assert layer.digest == to_hex(int(mask_digest(new)))


def test_events_and_statistics() -> None:
    model = network()
    sparsifier = attach(set_(delta_T=2, T_end=1.0), model)
    before = dict(sparsifier.topology.masks)
    event = sparsifier.initialize()
    changes(before, event, sparsifier)
    assert event.num_dropped == sparsifier.topology.num_weights - num_active(
        sparsifier.topology.num_weights, 0.9
    )
    dropped = grown = updates = 0
    for step in range(9):
        before = dict(sparsifier.topology.masks)
        backward(model, step)
        if event := sparsifier.step():
            changes(before, event, sparsifier)
            assert event.num_dropped == event.num_grown > 0
            dropped, grown, updates = dropped + event.num_dropped, grown + event.num_grown, updates + 1
    statistics = sparsifier.statistics
    assert (statistics.num_updates, statistics.num_dropped, statistics.num_grown) == (updates, dropped, grown)
    assert updates == 4
    assert statistics.num_deferred == 0


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def batches(num: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.randn(4, 3, 4, 4, generator=generator), torch.randint(4, (4,), generator=generator))
        for _ in range(num)
    ]


def test_sensitivity_allocation_uses_the_mean_gradient_of_the_batches() -> None:
    model = network()
    sparsifier = attach(static(sparsity=0.6, allocation="sensitivity"), model)
    (inputs_0, labels_0), (inputs_1, labels_1) = data = batches(2)
    both = loss(model, (torch.cat([inputs_0, inputs_1]), torch.cat([labels_0, labels_1])))
    rms = {
        name: float(torch.autograd.grad(both, weight.parameter, retain_graph=True)[0].square().mean().sqrt())
        for name, weight in sparsifier.weights.items()
    }
    sparsifier.initialize(iter(data), loss)
    assert_exact(sparsifier, 0.6)
    assert all(p.grad is None for p in model.parameters())
    # Sparsity times sensitivity is one constant, except in layers at the cap of 0.99.
    products = []
    for name, density in sparsifier.topology.density.items():
        assert 1 - density <= 0.99
        if 1 - density < 0.98:
            products.append((1 - density) * rms[name])
    assert len(products) >= 2
    assert max(products) / min(products) < 1.05
    assert len(set(sparsifier.topology.density.values())) > 1


def test_sensitivity_allocation_without_batches() -> None:
    sparsifier = attach(static(allocation="sensitivity"), network())
    for arguments in ((), (batches(1),), (None, loss)):
        with pytest.raises(ValueError, match="needs data: pass batches and loss_fn"):
            sparsifier.initialize(*arguments)
    with pytest.raises(ValueError, match="batches is empty"):
        sparsifier.initialize([], loss)
    assert sparsifier.topology.sparsity == 0


def test_channels_last_chooses_the_same_topology() -> None:
    masks = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model = network(dtype=torch.float64).to(memory_format=memory_format)
        optimizer = sgd(model)
        sparsifier = attach(rigl(sparsity=0.8, delta_T=2), model, optimizer)
        sparsifier.initialize()
        for step in range(7):
            backward(model, step)
            event = sparsifier.step()
            if not event:
                optimizer.step()
            assert_exact(sparsifier, 0.8)
        masks.append(sparsifier.topology.masks)
    assert model[2].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


def test_transposed_weights() -> None:
    def initialize(self: nn.Module) -> None:
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.randn(12, 5))

    def forward(self: nn.Module, inputs: Tensor) -> Tensor:
        return inputs @ self.weight

    body = {"__init__": initialize, "forward": forward, "__module__": "transformers.pytorch_utils"}
    model = type("Conv1D", (nn.Module,), body)()
    optimizer = torch.optim.Adam(model.parameters())
    sparsifier = attach(rigl(sparsity=0.7, delta_T=2), model, optimizer)
    sparsifier.initialize()
    assert sparsifier.topology.masks["weight"].shape == (5, 12)
    for step in range(5):
        optimizer.zero_grad()
        model(torch.randn(3, 12, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        sparsifier.step()
        optimizer.step()
        assert_exact(sparsifier, 0.7)
        assert ((model.weight != 0) <= sparsifier.topology.masks["weight"].t()).all()


def test_tied_weights_are_masked_once() -> None:
    model = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9))
    model[1].weight = model[0].weight
    sparsifier = attach(static(sparsity=0.5), model)
    sparsifier.initialize()
    assert sparsifier.topology.num_weights == 81
    assert int((model[1].weight != 0).sum()) == num_active(81, 0.5)


def test_bfloat16() -> None:
    model = network(dtype=torch.bfloat16)
    optimizer = sgd(model)
    sparsifier = attach(rigl(sparsity=0.9, delta_T=2, grad_accumulation=2), model, optimizer)
    sparsifier.initialize()
    for step in range(7):
        backward(model, step)
        if not sparsifier.step():
            optimizer.step()
        assert_exact(sparsifier, 0.9)
    assert sparsifier.statistics.num_updates == 3


def test_dense_changes_nothing() -> None:
    results = []
    for sparse in (False, True):
        model = network()
        optimizer = sgd(model)
        sparsifier = attach(dense(), model, optimizer) if sparse else None
        if sparsifier:
            sparsifier.initialize()
        for step in range(4):
            backward(model, step)
            assert sparsifier is None or sparsifier.step() is None
            optimizer.step()
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*results)


def test_the_seed_decides_the_topology() -> None:
    masks = []
    for seed in (0, 0, 1):
        model = network()
        sparsifier = Sparsifier.attach(static(), model, sgd(model), total_steps=5, seed=seed)
        sparsifier.initialize()
        masks.append(sparsifier.topology.masks["5.weight"])
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_a_move_that_breaks_its_count_is_caught() -> None:
    def apply(context: Context) -> Topology:
        return Topology(context.topology.masks, {"weight": 5})

    method = Method(sparsity=constant(0.5), init=(Move("wrong", apply),))
    with pytest.raises(AssertionError, match="weight: 6 active, target 5"):
        attach(method, nn.Linear(3, 2)).initialize()


def test_step_before_initialize_is_an_error_and_a_sparsifier_says_what_it_holds() -> None:
    model = nn.Linear(10, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier.attach(rigl(sparsity=0.9), model, optimizer, total_steps=10, seed=0)
    model(torch.ones(1, 10)).sum().backward()
    with pytest.raises(RuntimeError, match=r"initialize\(\) or load_state_dict\(\) before step\(\)"):
        sparsifier.step()
    sparsifier.initialize()
    sparsifier.step()
    assert repr(sparsifier) == "Sparsifier(1 layers, 10 of 100 weights active, step 1 of 10)"


def test_settled_when_no_update_is_left() -> None:
    """20 steps, T_end 15, ΔT 5: the last update is that of step 15, which a NaN in a gradient defers."""
    model = network()
    sparsifier = attach(rigl(sparsity=0.8, delta_T=5), model)
    sparsifier.initialize()
    found = []
    for step in range(18):
        backward(model, step)
        if step == 15:
            next(iter(sparsifier.weights.values())).parameter.grad.fill_(torch.nan)
        sparsifier.step()
        found.append(sparsifier.settled)
    assert found == [False] * 16 + [True] * 2
    assert sparsifier.statistics.num_updates == 3
    assert attach(static(sparsity=0.8), network()).settled


def test_detached_it_keeps_nothing() -> None:
    model = network()
    sparsifier = attach(static(sparsity=0.8), model)
    sparsifier.initialize()
    sparsifier.detach()
    optimizer = sparsifier._optimizer
    backward(model, 0)
    optimizer.step()
    held = {name: int(weight.rows.count_nonzero()) for name, weight in sparsifier.weights.items()}
    active = {name: sparsifier.topology.nnz(name) for name in held}
    assert sum(held.values()) > 2 * sum(active.values())
    again = Sparsifier.attach(static(sparsity=0.5), model, optimizer, total_steps=10, seed=0)
    again.initialize()
    backward(model, 1)
    again.step()
    optimizer.step()
    assert not inactive_weights(again).any()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (rigl(sparsity=0.9, tile=(64, 64)), r"sparsity 0\.9 leaves none of 2 tiles of \(64, 64\)"),
        (rigl_structured(sparsity=0.99), r"sparsity 0\.99 leaves none of 6 channels: .* at most 0\.83"),
    ],
)
def test_a_sparsity_that_leaves_nothing_is_refused(method: Method, message: str) -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    with pytest.raises(ValueError, match=message):
        attach(method, model).initialize()


def test_a_sparsity_that_groups_cannot_have_is_refused() -> None:
    match = r"sparsity 0\.9 with group 4: one of every 4 stays at least, sparsity 0\.75; larger groups"
    for method in (rigl(sparsity=0.9, group=4), gmp(sparsity=0.9, group=4)):
        with pytest.raises(ValueError, match=match):
            attach(method, network())
    attach(rigl(sparsity=0.875, group=4), network()).initialize()


def test_a_run_that_ends_before_its_last_round_warns() -> None:
    model = network()
    sparsifier = attach(imp(sparsity=0.5, prune_fraction=0.5), model, total_steps=2)
    sparsifier.initialize()
    backward(model, 0)
    sparsifier.step()
    with pytest.warns(UserWarning, match=r"ends in round 1 of 2: .* prunes in next_round\(\)"):
        sparsifier.step()
