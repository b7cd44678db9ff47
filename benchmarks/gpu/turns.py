"""Timing: all providers take turns, so that a ratio compares neighbours in time on a device whose clocks drift."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.gpu.device import Device

__all__ = ["ROUNDS", "take_turns"]

WARM_ROUNDS, ROUNDS = 3, 31


def take_turns(works: Mapping[str, Callable[[], object]], device: Device) -> dict[str, list[float]]:
    """Microseconds of every piece of work in ROUNDS rounds; each round begins with another one."""
    times: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for turn in range(WARM_ROUNDS + ROUNDS):
        shift = turn % max(1, len(names))
        for name in names[shift:] + names[:shift]:
            spent = device.microseconds(works[name])
            if turn >= WARM_ROUNDS:
                times[name].append(spent)
    return times
