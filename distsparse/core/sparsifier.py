"""The only object with a lifetime: keeps a model's weights, gradients and optimizer state on a topology."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from distsparse.core.channels import companions, output_layers
from distsparse.core.criteria import INITIAL_SIGNALS
from distsparse.core.decision import Decision
from distsparse.core.events import Rewired, Statistics
from distsparse.core.gradients import GradientMemory
from distsparse.core.growth import grown_values
from distsparse.core.initial import Batch, LossFn, initial_signals
from distsparse.core.method import Method
from distsparse.core.moves import Move
from distsparse.core.sharding import check_sharded, whole_of
from distsparse.core.topology import Topology
from distsparse.core.update import Layers, LayerSignals, agree
from distsparse.core.weights import SparseWeight, find_weights, unwrap
from distsparse.core.zeros import InactiveZeros
from distsparse.dist import Comm, any_rank, current, layout
from distsparse.ops import counter_rng


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
    tensor of the weight's shape are exactly zero at inactive positions: any torch optimizer, through hooks.
    After a step of torch's SGD, Adam or AdamW this costs nothing, unless something was written to between two
    steps. Writes that torch does not count (through ``.data``, by a collective, by a second, fused optimizer)
    are found every 32 steps only.
    Where whole channels are inactive (tile (1, -1)), so are their biases and running means, see
    :func:`~distsparse.core.channels.companions`.
    Under DDP every rank makes the same calls; masks are equal by construction and compared after each update.
    A model that FSDP2 (``fully_shard``) sharded before has sharded masks: a rank's ``topology`` is
    that of its rows, and ``state_dict`` holds distributed tensors.
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
            comm: the ranks that share the topology; unless given those of a DDP model's process group, else
                of the default one.

        Raises:
            ValueError: nothing to sparsify, a pattern without a match, T_end past the run, a weight that
                the optimizer does not hold, or a method that does not run on sharded weights.
        """
        if total_steps < 1:
            raise ValueError(f"total_steps = {total_steps!r}: must be at least 1")
        method.check(total_steps)
        weights = find_weights(model, include=include, exclude=exclude)
        check_sharded(method, weights)
        # accelerate's wrapper delegates step() to the inner optimizer, which is where hooks and state live.
        inner = getattr(optimizer, "optimizer", optimizer)
        held = {id(p) for group in inner.param_groups for p in group["params"]}
        for weight in weights:
            if id(weight.parameter) not in held:
                raise ValueError(f"the optimizer does not hold the sparsified weight {weight.name!r}")
        group = model.process_group if isinstance(model, DistributedDataParallel) else None
        return cls(method, model, inner, weights, total_steps, seed, comm or current(group))

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
        self._whole = whole_of(weights)
        self._step = 0
        self._round = 0
        self._version = 0
        self._pending = False
        self._initialized = False
        self._gradients = GradientMemory(self._weights, method, total_steps)
        outputs = cache(partial(output_layers, model, weights))
        if method.structure.group == "row" or method.structure.tile == (1, -1):
            outputs()  # now, for FSDP2 exchanges the parameters of modules while it gathers them
        self._layers = Layers(self._weights, method, self._whole, seed, outputs)
        self._shapes = self._layers.shapes
        channels = companions(model, weights) if method.structure.tile == (1, -1) else {}
        self._zeros = InactiveZeros(self._weights, optimizer, channels, self._whole)
        self._nnz: dict[str, int] = {}
        self._set_topology(self._all_active())
        self._pre = optimizer.register_step_pre_hook(self._before_optimizer_step)
        self._post = optimizer.register_step_post_hook(self._after_optimizer_step)

    def __repr__(self) -> str:
        return (
            f"Sparsifier({len(self._nnz)} layers, "
            f"{sum(self._nnz.values()):,} of {self._num_weights:,} weights active, "
            f"step {self._step} of {self._total_steps})"
        )

    @property
    def topology(self) -> Topology:
        """What is active now; of a sharded model the rows of this rank."""
        return self._topology

    @property
    def sparsity(self) -> float:
        """Inactive fraction of the sparsified weights, of all ranks' where they are sharded."""
        return 1 - sum(self._nnz.values()) / self._num_weights

    @property
    def _num_weights(self) -> int:
        return sum(math.prod(shape) for shape in self._shapes.values())

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

    def inactive_zeroed(self, parameter: Tensor, gradient: Tensor) -> None:
        """Take note that a gradient is zero now wherever its parameter is inactive, as after a reduction."""
        self._zeros.inactive_zeroed(parameter, gradient)

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
            weights: state dict of the bare model, sharded or whole; what the prune left inactive is zeroed in
                the model.

        Raises:
            TopologyMismatch: ranks disagree; raised on all ranks.
        """
        self._round += 1
        method = self.method
        assert self._round < method.rounds, "no round is left"
        moves = method.update + (method.last_round if self._round == method.rounds - 1 else ())
        event = self._rewire(moves, {}, step=self._step, sparsity=method.sparsity_of_round(self._round))
        self.statistics.count(event)
        bare = unwrap(self._model)
        bare.load_state_dict(layout.placed(weights, bare.state_dict()))
        self._optimizer.state.clear()
        self._optimizer.zero_grad()
        self._zeros.zero_all()
        return event

    def step(self) -> Rewired | None:
        """Update the masks if it is time, then mask the gradients. After backward, before the optimizer.

        Gradients must be the reduced ones (DDP's backward leaves them so). With ``reduce_active``, change
        them in between by torch's own operations, not through ``.data``: what the reduction has zeroed is
        zeroed again only where torch has counted a change. A gradient that is not finite
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
        self._zeros.forget_gradients()
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
        if event is None:
            self._zeros.zero_gradients()
        if self._step == self._total_steps and self._round < self.method.rounds - 1:
            warnings.warn(
                f"the run ends in round {self._round + 1} of {self.method.rounds}: this method prunes in "
                "next_round(), which is called between two of them",
                stacklevel=2,
            )
        return event

    def detach(self) -> None:
        """Let go of the optimizer, for another sparsifier or none; nothing keeps zeros zero from then on."""
        self._pre.remove()
        self._post.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs: tensors and plain values, nested in dictionaries of string keys.

        Of sharded weights the tensors are distributed ones.
        """

        def copied(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {n: layout.row_shard(v.clone(), self._weights[n].parameter) for n, v in values.items()}

        return {
            "structure": repr(self.method.structure),
            "step": self._step,
            "round": self._round,
            "pending": self._pending,
            "targets": dict(self._topology.targets),
            "requested": dict(self._topology.requested),
            "statistics": vars(self.statistics).copy(),
            "masks": copied(self._topology.masks),
            "allowed": copied(self._topology.allowed),
            "gradients": self._gradients.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; restore the model's and optimizer's own state as well.

        Tensors may be whole or sharded, so a state may come from any number of ranks.

        Raises:
            ValueError: the state names other layers or shapes, is of another structure, or its counts
                contradict its masks.
        """
        masks: dict[str, Tensor] = state["masks"]
        shapes = {name: (shape[0], math.prod(shape[1:])) for name, shape in self._shapes.items()}
        if {name: tuple(mask.shape) for name, mask in masks.items()} != shapes:
            raise ValueError(
                "the state's layers or shapes differ from the model's: not a state of this model"
            )
        own_structure = repr(self.method.structure)
        if (structure := state.get("structure", own_structure)) != own_structure:
            raise ValueError(f"the state is of a method with {structure}, and this one has {own_structure}")

        def own(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            parameters = {name: self._weights[name].parameter for name in values}
            return {
                name: layout.own_rows(value, parameters[name]).to(parameters[name].device, torch.bool)
                for name, value in values.items()
            }

        device_masks, allowed = own(masks), own(state["allowed"])
        targets = {name: int(state["targets"][name]) for name in shapes}
        topology = Topology(device_masks, targets, allowed, dict(state["requested"]))
        for name, mask in device_masks.items():
            units = self._whole.count(self.method.structure.units(mask))
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
        self._set_topology(topology.with_masks(device_masks, num_active=targets))
        self._zeros.zero_all()

    def _all_active(self) -> Topology:
        masks = {n: torch.ones_like(w.rows, dtype=torch.bool) for n, w in self._weights.items()}
        grid = self.method.structure.grid
        shapes = {name: (shape[0], math.prod(shape[1:])) for name, shape in self._shapes.items()}
        return Topology(masks, {name: math.prod(grid(shape)) for name, shape in shapes.items()})

    def _set_topology(self, topology: Topology) -> None:
        self._topology = topology
        self._version += 1
        for name, mask in topology.masks.items():
            self._nnz[name] = self._whole.count(mask)
            self._zeros.set_mask(name, mask, full=self._nnz[name] == math.prod(self._shapes[name]))

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
            progress = self.method.progress(step, self._total_steps)
            decisions = self._layers.decide(
                moves, self._topology, signals, before, step=step, progress=progress, sparsity=sparsity
            )
            agree(self._comm, decisions, step=step)
            self._apply(decisions, step)
            self._zeros.zero_gradients()
            self._version += 1
        changes = tuple(decision.change for decision in decisions)
        return Rewired(step, changes, bool(step) and self.method.skip_optimizer_step)

    def _apply(self, decisions: Sequence[Decision], step: int) -> None:
        """Put each layer on its new mask. An old one is let go before the next layer's is made."""
        old = self._topology  # its owner may still look at it
        masks, targets = dict(old.masks), dict(old.targets)
        allowed, requested = dict(old.allowed), dict(old.requested)
        counted: dict[str, tuple[Tensor, int]] = {}
        del old
        self._topology = Topology(masks, targets, allowed, requested, counted)
        by_name = {decision.change.name: decision for decision in decisions}

        def apply(name: str) -> None:
            decision = by_name[name]
            change, own = decision.change, decision.topology
            before = masks[name] if self.method.grow_init != "zeros" else None
            # A grown weight takes its first gradient at the next step.
            if change.num_grown and not self.method.skip_optimizer_step:
                self._zeros.zero_gradient(name)
            mask = masks[name] = decision.mask(cols=masks[name].shape[1])
            counted[name] = mask, decision.num_units
            targets.update(own.targets)
            allowed.update(own.allowed)
            requested.update(own.requested)
            self._nnz[name] = change.nnz
            self._zeros.set_mask(name, mask, full=change.nnz == change.num_weights)
            self._zeros.zero(name, with_gradient=True)
            if before is not None:
                self._start_grown(name, mask & ~before, step)

        self._layers.each(apply)

    def _start_grown(self, name: str, grown: Tensor, step: int) -> None:
        """Give newly grown weights, which are zero, their first values; what comes back keeps its own."""
        weight = self._weights[name]
        key = counter_rng.key(self._seed, step, name, "grow_init")
        values = grown_values(
            self.method.grow_init, grown, key, weight.parameter.dtype, first_row=weight.first_row
        )
        layout.local(weight.parameter).add_(weight.unmatrix(values))

    def _before_optimizer_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # A closure makes other gradients, within the step; other hooks may write between it and ours.
        closure = any(map(callable, (*args[1:], *kwargs.values())))
        hooks = (
            next(reversed(optimizer._optimizer_step_pre_hooks)),
            next(iter(optimizer._optimizer_step_post_hooks)),
        )
        adjoins = hooks == (self._pre.id, self._post.id)
        self._zeros.before_optimizer_step(trusted=adjoins and not closure)

    def _after_optimizer_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._zeros.after_optimizer_step()
