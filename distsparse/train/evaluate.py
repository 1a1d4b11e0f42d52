"""Loss and accuracy over a split, each rank a share of it."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from distsparse import data
from distsparse.data import Split
from distsparse.train.setup import Run


@torch.no_grad()
def evaluate(run: Run, split: Split) -> tuple[float, float]:
    """Return (mean cross-entropy, accuracy in [0, 1]) over a split, equal on all ranks. All ranks call it."""
    # The bare model: ranks may hold unequal numbers of batches, and DDP's forward is a collective.
    # So is that of a sharded model, of which every rank therefore makes as many.
    model = run.bare_model
    for buffer in model.buffers():
        # Running statistics differ by each rank's last batch; rank 0's are saved, so they are what counts.
        buffer.copy_(run.comm.gather(buffer)[0])
    model.eval()
    dtype = next(model.parameters()).dtype
    device = split.labels.device
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    share = torch.arange(run.comm.rank, len(split.labels), run.comm.world_size, device=device)
    size = run.config.train.evaluation_batch_size
    most = -(-len(split.labels) // run.comm.world_size) if run.is_sharded else len(share)
    for start in range(0, most, size):
        index = share[start : start + size]
        # With nothing left, a pass over one sample that does not count.
        used = index if len(index) else torch.zeros(1, dtype=torch.int64, device=device)
        inputs, labels = data.batch(split, used, dataset=run.dataset, key=None)
        with run.accelerator.autocast():
            logits = model(inputs.to(dtype))
        logits = logits[: len(index)].to(torch.promote_types(dtype, torch.float32))
        labels = labels[: len(index)]
        totals[0] += F.cross_entropy(logits, labels, reduction="sum")
        totals[1] += (logits.argmax(1) == labels).sum()
        totals[2] += len(index)
    model.train()
    loss, correct, count = run.comm.sum(totals).tolist()
    return loss / count, correct / count
