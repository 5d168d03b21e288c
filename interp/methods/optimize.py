"""The training loop of every method, and the batches it takes."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from interp.runs.config import RunFailed
from interp.runs.progress import Progress

Batch = TypeVar("Batch")


def optimize(optimizer: torch.optim.Optimizer, loss_of: Callable[[int, Batch], Tensor],
             batches: Callable[[], Iterable[Batch]], epochs: int, *, name: str,
             advice: Callable[[], str] = lambda: "lr", after_step: Callable[[], None] = lambda: None,
             after_epoch: Callable[[int], None] = lambda done: None) -> None:
    """Take a step for each batch of each epoch; raises RunFailed: the loss is not a number.

    loss_of: of an epoch, from 0, and a batch: a scalar. batches: those of an epoch, such as row numbers (batch,). name:
    of what is trained, on the progress bar and in messages. advice: which value should be smaller, if the loss is not a
    number. after_epoch: called with the number of epochs done.
    """
    bar = Progress(range(epochs), desc=name, unit="epoch")
    for epoch in bar:
        for batch in batches():
            loss = loss_of(epoch, batch)
            if not torch.isfinite(loss):
                raise RunFailed(f"{name}: the loss became {loss.item()} in epoch {epoch}; try a smaller {advice()}.")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            after_step()
        bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
        after_epoch(epoch + 1)


def shuffled_batches(count: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Row numbers in random order, the incomplete last batch dropped; a list of (batch_size,)."""
    order = torch.randperm(count, generator=generator)
    return list(order[:count - count % batch_size].split(batch_size))


def even_batch(count: int, most: int) -> int:
    """The size of batches of at most so many rows that leave hardly a row out: 473 for 947 rows and at most 500."""
    return max(1, count // -(-count // most)) if count else 1


def batches_in_order(count: int, batch_size: int) -> list[Tensor]:
    """Row numbers in order, in batches; the last one may be shorter."""
    return list(torch.arange(count).split(batch_size))
