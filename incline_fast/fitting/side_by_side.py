"""Work on several sites at the same time, each with one thread.

QR and eigendecompositions gain less from a second thread in one matrix than from a second matrix
(docs/notes/least_squares.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

import torch

__all__ = ["side_by_side"]

Result = TypeVar("Result")


def side_by_side(work: Callable[[int], Result], sites: Sequence[int], at_once: int) -> Iterator[tuple[int, Result]]:
    """``(site, work(site))`` of every site as it is done; the first error ends it.

    Args:
        work: called in a thread of its own, under the caller's gradient and inference mode.
        sites: what to call it with.
        at_once: how many at the same time; 1 calls it here, with all threads. While there are more, Python threads that
            others begin have one thread too: torch gives a new one the number that was set last.
    """
    if at_once == 1:
        for site in sites:
            yield site, work(site)
        return
    threads, gradient, inference = torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def alone(site: int) -> Result:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradient):
            return work(site)

    try:
        with ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            waiting = {pool.submit(alone, site): site for site in sites}
            try:
                for done in as_completed(waiting):
                    yield waiting[done], done.result()
            finally:
                for future in waiting:
                    future.cancel()
    finally:
        torch.set_num_threads(threads)
