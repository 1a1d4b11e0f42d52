"""The training loop: the same on one process, on Ray Train workers and inside a Tune trial."""

from __future__ import annotations

import math

import torch
from torch.nn.utils import clip_grad_norm_

from distsparse.config import RunConfig
from distsparse.data import Dataset
from distsparse.dist import layout
from distsparse.loggers import Logs
from distsparse.ops.counter_rng import key
from distsparse.train.early_stop import columns, goes_on
from distsparse.train.evaluate import evaluate
from distsparse.train.history import History, LossWindow, Row
from distsparse.train.progress import Progress, describe
from distsparse.train.reporter import Reporter
from distsparse.train.resume import resume
from distsparse.train.setup import Run, prepare


def train(
    config: RunConfig,
    dataset: Dataset,
    reporter: Reporter,
    *,
    history: History,
    logs: Logs | None = None,
    verbose: bool = False,
) -> Row:
    """Train to the end of the run, from the reporter's last checkpoint if it has one; return the summary.

    A learning-rate schedule may end the run early, after an evaluation; all is then as at its last step.

    Args:
        config: the run.
        dataset: see :func:`distsparse.train.setup.check`.
        reporter: the runner's side, see :class:`~distsparse.train.reporter.Reporter`.
        history: filled with the run's rows as they arise, so that a failed run's are there too.
        logs: the experiment trackers, on rank 0; they hear of rows as they come, and the caller ends them.
        verbose: show progress (on rank 0).

    Raises:
        KeyboardInterrupt: the reporter asked to stop, and the step that was done then is saved; on all ranks.
        FloatingPointError: the loss, or a weight that is to be saved, is not finite; on all ranks.
        TopologyMismatch: ranks hold different masks; on all ranks.
    """
    settings = config.train
    run = prepare(config, dataset, world_size=reporter.world_size)
    window = LossWindow(run.comm, run.accelerator.device)
    resumed, lines = resume(run, reporter, history, window)
    first_step = resumed or 0
    if resumed is None:
        history.add_rewired(run.sparsifier.initialize(run.micro_batches(0), run.loss))
        run.rewinder.step(0)
    if logs is not None:
        logs.begin(resumed=resumed is not None)
    plan = run.plan
    progress = Progress(
        plan.total_steps, initial=first_step, unit="step", enabled=verbose and reporter.rank == 0
    )
    for line in lines:
        progress.line(line)
        reporter.report({"line": line}, step=first_step)

    run.model.train()
    history.resume_clock()
    stops = bool(history.summary.get("stopped_early"))
    for step in range(first_step, first_step if stops else plan.total_steps):
        # Dropout's randomness is a function of seed, step and rank: no generator state to save.
        torch.manual_seed(key(config.seed, "step", step, run.comm.rank))
        for sample in run.micro_batches(step):
            with run.accelerator.accumulate(run.model):
                loss = run.loss(run.model, sample)
                run.accelerator.backward(loss)
                window.add(loss.detach() / settings.accumulation)
        scaler = run.accelerator.scaler
        if scaler is not None:
            run.accelerator.unscale_gradients(run.optimizer)
        event = run.sparsifier.step()
        grad_norm = None
        if settings.clip_norm is not None:
            # Not accelerate's: it would unscale once more, which the scaler refuses.
            grad_norm = float(layout.whole(clip_grad_norm_(run.model.parameters(), settings.clip_norm)))
        # What put the update off would make every weight NaN.
        if not (run.sparsifier.pending or (event and event.skip_optimizer_step)):
            run.optimizer.step()
        elif scaler is not None:
            scaler.update()  # as optimizer.step() does; the scaler unscales once per update
        learning_rate = float(run.optimizer.param_groups[0]["lr"])
        run.schedule.step()
        run.optimizer.zero_grad()
        window.num_steps += 1
        if event:
            history.add_rewired(event)
        progress.advance()

        done = step + 1
        epoch, position = plan.epoch(step)
        ends_epoch = position + 1 == plan.steps_per_epoch
        ends = done == plan.total_steps
        evaluates = plan.ends_round(done) or (ends_epoch and (epoch + 1) % settings.evaluate_every == 0)
        every = config.checkpoint.every_steps
        stopping = not ends and reporter.stops_after(done)
        saves = ends or stopping or (done % every == 0 if every else ends_epoch)
        if evaluates or done % settings.log_every == 0:
            mean_loss = window.take()
            if not math.isfinite(mean_loss):
                raise FloatingPointError(f"the loss is {mean_loss} at step {done}")
            history.pause_clock()  # after the loss was read: that waited for the device
            history.steps.append(_row(run, history, done, mean_loss, learning_rate, grad_norm))
            history.resume_clock()
        if evaluates:
            with history.beside_training():
                history.steps[-1].update(_evaluate(run))
                stops = not goes_on(run, history.steps) and not ends
                _summarise(run, history, history.steps[-1], stopped_early=stops)
                progress.line(describe(history.summary, plan.num_epochs))
        if rewound := run.rewinder.step(done):
            history.add_rewired(rewound)
        if logs is not None and history.steps and history.steps[-1]["step"] == done:
            logs.send(history.steps, history.rewires)
        if saves:
            _check_finite(run, done)
            window.synchronize()
        if evaluates or saves:
            with history.beside_training():
                # The window was just taken, so a stop that no checkpoint was due at needs no synchronizing.
                state = {"step": done, "history": history.to_dict(), "window": window.state_dict()}
                save = run.saver(**state) if saves or stops else None
                # Rank 0 alone has these lines, and a report is a call of all ranks.
                problems = "\n".join(logs.lines()) if logs else ""
                if problems:
                    progress.line(problems)
                told = {"line": problems} if problems else {}
                reporter.report({**history.summary, **told}, step=done, save=save)
            if stopping:
                progress.close()
                line = f"stopped at step {done} of {plan.total_steps}, and saved"
                progress.line(line)
                reporter.report({"line": line}, step=done)
                raise KeyboardInterrupt
            if stops:
                break
    history.pause_clock()
    progress.close()
    return history.summary


def _check_finite(run: Run, done: int) -> None:
    """Raise, on all ranks alike, before weights are saved that nothing could be resumed from.

    Raises:
        FloatingPointError: naming the first weight that is not finite.
    """
    state = run.bare_model.state_dict()
    finite = [layout.local(tensor).isfinite().all() for tensor in state.values()]
    problems = run.comm.sum(torch.stack([~flag for flag in finite]).to(torch.int64))
    for name, problem in zip(state, problems.tolist(), strict=True):
        if problem:
            raise FloatingPointError(f"{name} is not finite at step {done}")


def _row(
    run: Run, history: History, done: int, loss: float, learning_rate: float, grad_norm: float | None
) -> Row:
    """Return a row of the ``steps`` table."""
    num_samples = (done - (history.steps[-1]["step"] if history.steps else 0)) * run.config.train.batch_size
    seconds = history.train_s - history.row_train_s
    history.row_train_s = history.train_s
    return {
        "step": done,
        "epoch": done / run.plan.steps_per_epoch,
        "train_loss": loss,
        "learning_rate": learning_rate,
        "grad_norm": grad_norm,
        "samples_per_s": num_samples / max(seconds, 1e-9),
        "elapsed_s": history.wall_s,
        **_traffic(run),
        "sparsity": run.sparsifier.sparsity,
    }


def _traffic(run: Run) -> Row:
    """Return the bytes of gradients that a worker has sent so far; nothing where there is one process."""
    if run.reduction is None:
        return {}
    return {"gradient_bytes": run.reduction.sent_bytes, "dense_gradient_bytes": run.reduction.dense_bytes}


def _evaluate(run: Run) -> Row:
    """Return loss and accuracy on the test split, and on the validation split where there is one."""
    metrics: Row = {}
    for name, split in (("validation", run.dataset.validation), ("test", run.dataset.test)):
        if split is not None:
            metrics[f"{name}_loss"], metrics[f"{name}_accuracy"] = evaluate(run, split)
    return metrics


def _summarise(run: Run, history: History, row: Row, *, stopped_early: bool) -> None:
    """Bring the run's summary up to an evaluation."""
    statistics = run.sparsifier.statistics
    summary = {
        "accuracy": row["test_accuracy"],
        "loss": row["test_loss"],
        "train_loss": row["train_loss"],
        "sparsity": row["sparsity"],
        "num_updates": statistics.num_updates,
        "num_dropped": statistics.num_dropped,
        "num_grown": statistics.num_grown,
        "steps": row["step"],
        "epochs": row["step"] // run.plan.steps_per_epoch,
        "stopped_early": stopped_early,
        **columns(run),
        **_traffic(run),
        "world_size": run.comm.world_size,
        "train_s": history.train_s,
        "steps_per_s": row["step"] / history.train_s,
        "samples_per_s": row["step"] * run.config.train.batch_size / history.train_s,
    }
    if "validation_accuracy" in row:
        best = history.summary.get("best_validation_accuracy", 0.0)
        summary["validation_accuracy"] = row["validation_accuracy"]
        summary["validation_loss"] = row["validation_loss"]
        summary["best_validation_accuracy"] = max(best, row["validation_accuracy"])
    history.summary = summary
