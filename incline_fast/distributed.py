"""A fit over several processes that torchrun has started: their ranks, and what they exchange."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

__all__ = [
    "RankError",
    "gather",
    "own_device",
    "rank_and_size",
    "started_by_torchrun",
    "synchronize",
    "together",
    "total",
]


class RankError(OSError):
    """Another process of the run has died or does not answer."""


def started_by_torchrun() -> bool:
    """Whether this process is one of several of a torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def own_device(device: str) -> str:
    """``"cuda"`` as this process's own GPU, ``cuda:LOCAL_RANK``, under a torchrun; any other device as it is."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and started_by_torchrun() else device


@contextmanager
def together(timeout_s: float) -> Iterator[None]:
    """The default process group inside, over gloo: states and maps are exchanged on the CPU.

    Args:
        timeout_s: how long a process waits for the others at an exchange before it gives up.
    """
    with _reporting():
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout_s))
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank_and_size(distributed: bool) -> tuple[int, int]:
    """Rank and number of processes; 0 of 1 where the work is not shared.

    Raises:
        ValueError: the work is to be shared and there is no process group.
    """
    if not distributed:
        return 0, 1
    if not dist.is_initialized():
        raise ValueError("distributed is True without a process group; call torch.distributed.init_process_group first")
    return dist.get_rank(), dist.get_world_size()


def synchronize() -> None:
    """Wait until every process is here."""
    with _reporting():
        dist.barrier()


def total(value: Tensor) -> None:
    """Add up a CPU tensor over the processes, in place."""
    with _reporting():
        dist.all_reduce(value)


def gather(value: Any) -> list[Any]:
    """The values of all processes, by rank."""
    gathered: list[Any] = [None] * dist.get_world_size()
    with _reporting():
        dist.all_gather_object(gathered, value)
    return gathered


@contextmanager
def _reporting() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankError(
            f"a process of this run has died or did not answer in time ({str(error).splitlines()[0]}); see its own "
            "message above. With resume, finished batches are kept: start the same command again"
        ) from error
