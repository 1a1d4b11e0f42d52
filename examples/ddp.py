"""Data-parallel sparse training in a loop of one's own: `torchrun --nproc-per-node 2 examples/ddp.py`.

All processes have the same masks. Between mask updates only the gradients of active weights travel.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import distributed, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from distsparse import Sparsifier
from distsparse.dist import leave, reduce_active
from distsparse.methods import rigl

STEPS, BATCH = 1000, 64


def train() -> None:
    """Train RigL at 90 % on scikit-learn's digits; each process has its share of every batch."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    digits = train_test_split(*load_digits(return_X_y=True), test_size=360, random_state=0)
    inputs, test_inputs = (torch.tensor(pixels / 16, dtype=torch.float32) for pixels in digits[:2])
    labels, test_labels = map(torch.tensor, digits[2:])

    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    sparsifier = Sparsifier.attach(rigl(sparsity=0.9), model, optimizer, total_steps=STEPS, seed=0)
    traffic = reduce_active(model, sparsifier)  # without it all gradients travel, and nothing else differs
    sparsifier.initialize()

    order = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        batch = torch.randint(len(labels), (BATCH,), generator=order)[rank::world_size]
        optimizer.zero_grad()
        cross_entropy(model(inputs[batch]), labels[batch]).backward()
        event = sparsifier.step()
        if not (event and event.skip_optimizer_step):
            optimizer.step()

    if rank == 0:
        with torch.no_grad():
            right = model.module(test_inputs).argmax(1) == test_labels
        print(sparsifier)
        print(f"test accuracy {right.float().mean():.3f}, of {len(right)} images")
        sent, dense = (num_bytes / 1e6 for num_bytes in (traffic.sent_bytes, traffic.dense_bytes))
        print(f"gradients sent: {sent:.1f} MB, where a dense all-reduce sends {dense:.1f}")


if __name__ == "__main__":
    distributed.init_process_group("gloo")  # "nccl" on GPUs, with the model and the batches on them
    train()
    leave()
