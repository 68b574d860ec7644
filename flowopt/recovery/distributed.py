"""Several processes that train one model, each on its share of every batch.

A mean over a batch is the mean of the shares' means only where each share counts the same. What is divided by is
therefore averaged over the processes, and gradients, which are averaged too, become those of the whole batch.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that ``torchrun`` started, unless that was done before; alone, nothing happens.

    What computes more than a recovery joins them around all of it: outside, every process takes itself for the first.

    Args:
        device: gloo joins processes on CPUs, nccl those on GPUs.
    """
    joins = distributed.is_available() and not distributed.is_initialized() and distributed.is_torchelastic_launched()
    if not joins:
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(minutes=10))
    try:
        yield
    finally:
        distributed.destroy_process_group()


def world_size() -> int:
    """How many processes train together; 1 for one alone."""
    return distributed.get_world_size() if _is_joined() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if _is_joined() else 0


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of one number over all processes, without a gradient; ``value`` itself where there is one process."""
    if world_size() == 1:
        return value.detach()
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total / world_size()


def is_true_anywhere(fact: bool, device: torch.device) -> bool:
    """Whether a fact holds for any process, so that all decide alike."""
    if world_size() == 1:
        return fact
    found = torch.tensor(int(fact), device=device)
    distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
    return bool(found.item())


def names_of_first(names: Sequence[str]) -> tuple[str, ...]:
    """The names that the first process has: what each measured for itself may differ, and they train one model."""
    if world_size() == 1:
        return tuple(names)
    shared: list[Sequence[str] | None] = [names if rank() == 0 else None]
    distributed.broadcast_object_list(shared, src=0)
    (found,) = shared
    assert found is not None, "the first process has sent its own"
    return tuple(found)


def averaged(objective: nn.Module, *, reads_all: bool) -> nn.Module:
    """A module that gives a loss, around which gradients are averaged over the processes, if there are several.

    They start from the tensors of the first: calibration may have rounded differently elsewhere. The loss has to be all
    that comes out: an output that no loss reads would leave gradients to wait for.

    Args:
        objective: its state is overwritten but in the first process.
        reads_all: whether every trained tensor gets a gradient in every step. Where it is not so, each step looks for
            those that do not; where it is, looking would cost time, and every process would warn of it.
    """
    if world_size() == 1:
        return objective
    for tensor in objective.state_dict().values():
        distributed.broadcast(tensor, 0)
    with warnings.catch_warnings():
        # Newer releases of torch call the argument otherwise, older ones know no other name.
        warnings.simplefilter("ignore", FutureWarning)
        # Statistics of leaves stay the same everywhere by themselves.
        return nn.parallel.DistributedDataParallel(
            objective, find_unused_parameters=not reads_all, broadcast_buffers=False
        )


def _is_joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()
