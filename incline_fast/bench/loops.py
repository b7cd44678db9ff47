"""The one timing loop: calls take turns, so that a ratio compares neighbours in time where the speed drifts."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Mapping

__all__ = ["Prepare", "interleaved"]

Prepare = Callable[[int], Callable[[], object]]
"""Called with the number of calls made before; returns the call to time next. Its own time is not counted."""


def interleaved(
    calls: Mapping[str, Prepare],
    *,
    rounds: int = 1,
    seconds: float = 0.0,
    longest: float = math.inf,
    warm_up: int = 0,
    settle: float = 0.0,
) -> dict[str, list[float]]:
    """Microseconds of every call, by name; the i-th times of all names are of one round.

    Every round calls each name once, in a new random order: in a fixed order, each would always find the caches as the
    same predecessor left them.

    Args:
        calls: name -> the function that prepares its next call.
        rounds: at least this many are counted, unless they take longer than ``longest``.
        seconds: rounds go on for at least this time.
        longest: seconds after which fewer than ``rounds`` are enough; one is always counted.
        warm_up: rounds before those that are counted.
        settle: seconds to wait before every call, for providers whose thread pools keep spinning after a call.
    """
    order, times = random.Random(0), {name: list[float]() for name in calls}
    made, begin = 0, time.perf_counter()
    for turn in itertools.count(-warm_up):
        spent = time.perf_counter() - begin
        if turn > 0 and spent >= seconds and (turn >= rounds or spent >= longest):
            return times
        if turn == 0:
            times, begin = {name: [] for name in calls}, time.perf_counter()
        for name in order.sample(list(calls), len(calls)):
            call = calls[name](made)
            time.sleep(settle)
            start = time.perf_counter_ns()
            call()
            times[name].append((time.perf_counter_ns() - start) / 1e3)
            made += 1
    raise AssertionError("the loop above returns")
