"""The only object with a lifetime: keeps a model's weights, gradients and optimizer state on a topology."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from distsparse.core.channels import companions
from distsparse.core.criteria import INITIAL_SIGNALS
from distsparse.core.decision import Decision, decided
from distsparse.core.events import Rewired, Statistics
from distsparse.core.gradients import GradientMemory
from distsparse.core.growth import grown_values
from distsparse.core.initial import Batch, LossFn, initial_signals
from distsparse.core.method import Method
from distsparse.core.moves import Context, Move, by_layer
from distsparse.core.signals import Signals
from distsparse.core.topology import Topology
from distsparse.core.weights import SparseWeight, find_weights, unwrap
from distsparse.core.zeros import InactiveZeros
from distsparse.dist import Comm, any_rank, current, verify
from distsparse.ops import counter_rng

LayerSignals = dict[str, dict[str, Tensor]]


class Sparsifier:
    """Sparse training of a model in anyone's own loop.

    ::

        sparsifier = Sparsifier.attach(rigl(sparsity=0.9), model, optimizer, total_steps=1000, seed=0)
        sparsifier.initialize()
        for batch in batches:
            optimizer.zero_grad()
            loss(model, batch).backward()
            event = sparsifier.step()  # after backward, before the optimizer
            if not (event and event.skip_optimizer_step):
                optimizer.step()

    After every ``step`` and every optimizer step, inactive weights, their gradients and every optimizer-state
    tensor of the weight's shape are exactly zero at inactive positions: any torch optimizer, through a hook.
    Where whole channels are inactive (tile (1, -1)), so are their biases and running means, see
    :func:`~distsparse.core.channels.companions`.
    Under DDP every rank makes the same calls; masks are equal by construction and compared after each update.
    """

    @classmethod
    def attach(
        cls,
        method: Method,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        total_steps: int,
        seed: int,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        comm: Comm | None = None,
    ) -> Sparsifier:
        """Prepare a model; no weight is touched before :meth:`initialize`.

        Args:
            method: what to do, e.g. ``distsparse.methods.rigl(sparsity=0.9)``.
            model: on its device, bare or wrapped by DDP.
            optimizer: any torch optimizer over the model's parameters, bare or wrapped by accelerate.
            total_steps: optimizer steps of the whole run; T_end is relative to it.
            seed: of the topology's random choices; equal on all ranks.
            include: glob patterns of weights to sparsify, see :func:`~distsparse.core.weights.find_weights`.
            exclude: glob patterns of weights to leave dense.
            comm: the ranks that share the topology; the default process group unless given.

        Raises:
            ValueError: nothing to sparsify, a pattern without a match, T_end past the run, or a weight that
                the optimizer does not hold.
        """
        if total_steps < 1:
            raise ValueError(f"total_steps = {total_steps!r}: must be at least 1")
        method.check(total_steps)
        weights = find_weights(model, include=include, exclude=exclude)
        # accelerate's wrapper delegates step() to the inner optimizer, which is where hooks and state live.
        inner = getattr(optimizer, "optimizer", optimizer)
        held = {id(p) for group in inner.param_groups for p in group["params"]}
        for weight in weights:
            if id(weight.parameter) not in held:
                raise ValueError(f"the optimizer does not hold the sparsified weight {weight.name!r}")
        return cls(method, model, inner, weights, total_steps, seed, comm or current())

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        optimizer: Optimizer,
        weights: Sequence[SparseWeight],
        total_steps: int,
        seed: int,
        comm: Comm,
    ) -> None:
        self.method = method
        self.statistics = Statistics()
        self._model = model
        self._optimizer = optimizer
        self._weights = {weight.name: weight for weight in weights}
        self._total_steps = total_steps
        self._seed = seed
        self._comm = comm
        self._step = 0
        self._round = 0
        self._version = 0
        self._pending = False
        self._initialized = False
        self._gradients = GradientMemory(self._weights, method, total_steps)
        self._shapes = {name: weight.shape for name, weight in self._weights.items()}
        channels = companions(model, weights) if method.structure.tile == (1, -1) else {}
        self._zeros = InactiveZeros(self._weights, optimizer, channels)
        self._set_topology(self._all_active())
        optimizer.register_step_post_hook(self._after_optimizer_step)

    def __repr__(self) -> str:
        topology = self._topology
        active = sum(topology.nnz(name) for name in topology.masks)
        return (
            f"Sparsifier({len(topology.masks)} layers, "
            f"{active:,} of {topology.num_weights:,} weights active, "
            f"step {self._step} of {self._total_steps})"
        )

    @property
    def topology(self) -> Topology:
        """What is active now."""
        return self._topology

    @property
    def version(self) -> int:
        """A number that changes with the topology."""
        return self._version

    @property
    def wants_dense_gradient(self) -> bool:
        """Whether the next :meth:`step` reads the gradient of inactive weights."""
        return self._gradients.wants(self._step, pending=self._pending)

    def active_entries(self, parameter: Tensor) -> Tensor | None:
        """Return bool of a parameter's shape, True where active; None for one without inactive entries."""
        return self._zeros.active_entries(parameter)

    @property
    def weights(self) -> dict[str, SparseWeight]:
        """The sparsified weights by name."""
        return dict(self._weights)

    def update_schedule(self) -> list[int]:
        """Return the steps of this run at which the masks are updated."""
        return self.method.update_schedule(self._total_steps)

    @property
    def pending(self) -> bool:
        """Whether the last step put off an update, since a gradient was not finite; on all ranks alike."""
        return self._pending

    @property
    def settled(self) -> bool:
        """Whether the topology is final: no mask update is left in this run."""
        last_round = self._round == self.method.rounds - 1
        return last_round and not self._pending and self._step > max(self.update_schedule(), default=-1)

    def initialize(self, batches: Iterable[Batch] | None = None, loss_fn: LossFn | None = None) -> Rewired:
        """Choose the first topology and zero what is inactive. All ranks must call it.

        Args:
            batches: this rank's batches, for methods whose first topology depends on data.
            loss_fn: (model, batch) → scalar mean loss, likewise.

        Raises:
            ValueError: the method needs data and ``batches`` or ``loss_fn`` is missing.
            TopologyMismatch: ranks chose differently.
        """
        needs = self.method.init_needs & INITIAL_SIGNALS
        if needs and (batches is None or loss_fn is None):
            raise ValueError("this method's first topology needs data: pass batches and loss_fn")
        kept = list(batches) if needs and batches is not None else []
        before = self._topology.masks
        for round_ in range(self.method.init_rounds):
            signals: LayerSignals = {}
            if needs and loss_fn is not None:
                signals = initial_signals(
                    needs,
                    self._model,
                    self._weights,
                    kept,
                    loss_fn,
                    self._comm,
                    temperature=self.method.temperature,
                )
            sparsity = self.method.initial_sparsity(round_)
            event = self._rewire(self.method.init, signals, step=0, sparsity=sparsity, before=before)
        self._initialized = True
        return event

    def next_round(self, weights: Mapping[str, Tensor]) -> Rewired:
        """Prune the trained network, then go back to other weights with a fresh optimizer state.

        For methods of several rounds, after the last optimizer step of a round; all ranks must call it.

        Args:
            weights: state dict of the bare model; what the prune left inactive is zeroed in the model.

        Raises:
            TopologyMismatch: ranks disagree; raised on all ranks.
        """
        self._round += 1
        method = self.method
        assert self._round < method.rounds, "no round is left"
        moves = method.update + (method.last_round if self._round == method.rounds - 1 else ())
        event = self._rewire(moves, {}, step=self._step, sparsity=method.sparsity_of_round(self._round))
        self.statistics.count(event)
        unwrap(self._model).load_state_dict(weights)
        self._optimizer.state.clear()
        self._optimizer.zero_grad()
        self._zeros.zero_all()
        return event

    def step(self) -> Rewired | None:
        """Update the masks if it is time, then mask the gradients. After backward, before the optimizer.

        Gradients must be the reduced ones (DDP's backward leaves them so). A gradient that is not finite
        on any rank defers the update, on all ranks, to the next step; a gradient window leaves it out.

        Returns:
            What changed, or None where no update took place.

        Raises:
            RuntimeError: the topology was not initialized.
            ValueError: an update needs a gradient and there is none.
            TopologyMismatch: ranks disagree after the update; raised on all ranks.
        """
        if not self._initialized:
            raise RuntimeError("call initialize() or load_state_dict() before step(): no topology was chosen")
        step, self._step = self._step, self._step + 1
        event = None
        due = self._pending or self.method.is_update_step(step, self._total_steps)
        wanted = self._gradients.wants(step, pending=self._pending)
        if (due or wanted) and any_rank(self._comm, self._gradients.not_finite()):
            self.statistics.num_deferred += due and not self._pending
            self._pending = due
        else:
            if wanted:
                self._gradients.add(step)
            if due:
                self._pending = False
                sparsity = self.method.sparsity_at(step, self._total_steps)
                signals = self._gradients.signals(step)
                event = self._rewire(self.method.update, signals, step=step, sparsity=sparsity)
                self.statistics.count(event)
        self._zeros.zero_gradients()
        return event

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs: tensors and plain values, nested in dictionaries of string keys."""
        return {
            "step": self._step,
            "round": self._round,
            "pending": self._pending,
            "targets": dict(self._topology.targets),
            "requested": dict(self._topology.requested),
            "statistics": vars(self.statistics).copy(),
            "masks": {name: mask.clone() for name, mask in self._topology.masks.items()},
            "allowed": {name: rows.clone() for name, rows in self._topology.allowed.items()},
            "gradients": self._gradients.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; restore the model's and optimizer's own state as well.

        Raises:
            ValueError: the state names other layers or shapes, or its counts contradict its masks.
        """
        masks: dict[str, Tensor] = state["masks"]
        shapes = {name: tuple(mask.shape) for name, mask in self._topology.masks.items()}
        if {name: tuple(mask.shape) for name, mask in masks.items()} != shapes:
            raise ValueError(
                "the state's layers or shapes differ from the model's: not a state of this model"
            )
        device_masks = {
            name: masks[name].to(mask.device, torch.bool) for name, mask in self._topology.masks.items()
        }
        allowed = {name: rows.to(device_masks[name].device) for name, rows in state["allowed"].items()}
        targets = {name: int(state["targets"][name]) for name in shapes}
        topology = Topology(device_masks, targets, allowed, dict(state["requested"]))
        for name, mask in device_masks.items():
            units = int(self.method.structure.units(mask).sum())
            if units != topology.targets[name]:
                raise ValueError(
                    f"layer {name!r}: {units} active, but its target is {topology.targets[name]}"
                )
        self._initialized = True
        self._step = int(state["step"])
        self._round = int(state["round"])
        self._pending = bool(state["pending"])
        self.statistics = Statistics(**state["statistics"])
        self._gradients.load_state_dict(state["gradients"])
        self._set_topology(topology)
        self._zeros.zero_all()

    def _all_active(self) -> Topology:
        masks = {
            name: torch.ones_like(weight.matrix(weight.parameter.detach()), dtype=torch.bool)
            for name, weight in self._weights.items()
        }
        units = self.method.structure.units
        return Topology(masks, {name: units(mask).numel() for name, mask in masks.items()})

    def _set_topology(self, topology: Topology) -> None:
        self._topology = topology
        self._version += 1
        for name, mask in topology.masks.items():
            self._zeros.set_mask(name, mask, full=bool(mask.all()))

    def _rewire(
        self,
        moves: Sequence[Move],
        signals: LayerSignals,
        *,
        step: int,
        sparsity: float,
        before: Mapping[str, Tensor] | None = None,
    ) -> Rewired:
        """Run moves, check agreement and counts, then apply: all ranks raise or none does.

        ``before`` is what the returned changes are relative to, the present masks unless given.
        """
        with torch.no_grad():
            decisions = self._decide(moves, signals, step, sparsity, before or self._topology.masks)
            device = decisions[0].digest.device  # a model may lie on several
            stacked = torch.stack([decision.digest.to(device) for decision in decisions])
            verify(self._comm, [decision.change.name for decision in decisions], stacked, step=step)
            for decision in decisions:
                decision.check()
            for decision in decisions:
                self._apply(decision, step)
            self._version += 1
        changes = tuple(decision.change for decision in decisions)
        return Rewired(step, changes, bool(step) and self.method.skip_optimizer_step)

    def _decide(
        self,
        moves: Sequence[Move],
        signals: LayerSignals,
        step: int,
        sparsity: float,
        before: Mapping[str, Tensor],
    ) -> list[Decision]:
        """Run moves; nothing is changed yet."""
        method, now = self.method, self._topology

        def signals_of(name: str, purpose: str) -> Signals:
            weight = self._weights[name]
            key = counter_rng.key(self._seed, step, name, purpose)
            return Signals(weight.matrix(weight.parameter.detach()), key, **signals.get(name, {}))

        progress = method.progress(step, self._total_steps)
        context = Context(now, now, self._shapes, signals_of, progress, sparsity, method.structure)
        return [decided(topology, before, method.structure) for topology in by_layer(moves, context)]

    def _apply(self, decision: Decision, step: int) -> None:
        """Put one layer on its new mask. The old one is let go before the next layer's is made."""
        change = decision.change
        starts = self.method.grow_init != "zeros"
        before = self._topology.masks[change.name] if starts else None
        # A grown weight takes its first gradient at the next step.
        if change.num_grown and not self.method.skip_optimizer_step:
            self._zeros.zero_gradient(change.name)
        self._topology = decision.merged(self._topology)
        mask = self._topology.masks[change.name]
        self._zeros.set_mask(change.name, mask, full=change.nnz == change.num_weights)
        self._zeros.zero(change.name)
        if before is not None:
            self._start_grown(change.name, before, step)

    def _start_grown(self, name: str, before: Tensor, step: int) -> None:
        """Give newly grown weights, which are zero, their first values; what comes back keeps its own."""
        weight = self._weights[name]
        grown = self._topology.masks[name] & ~before
        key = counter_rng.key(self._seed, step, name, "grow_init")
        values = grown_values(self.method.grow_init, grown, key, weight.parameter.dtype)
        weight.parameter.add_(weight.unmatrix(values))

    def _after_optimizer_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._zeros.zero_all()
