"""What a launch moved and executed, counted as the hardware counts it.

Global memory moves in 32-byte sectors: a request is one load or store instruction of one warp, and costs as many
sectors as its lanes touch. Shared memory has 32 banks of 4 bytes: a request is split so that at most 128 bytes are
served at once, and takes as long as its busiest bank has different words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from emulator.ptx.lanes import Lanes
from emulator.ptx.memory import Access
from emulator.ptx.scalars import Array

SECTOR = 32
BANKS = 32


@dataclass
class BufferTraffic:
    """Accesses of one buffer in one direction."""

    bytes: int
    requests: int = 0
    sectors: int = 0
    widths: Counter[int] = field(default_factory=Counter)  # bits per lane -> accesses of lanes
    touched: Array = field(default_factory=lambda: np.zeros(0, np.bool_))

    @property
    def distinct_sectors(self) -> int:
        """Sectors that were touched at all, each counted once."""
        return int(np.count_nonzero(self.touched))

    @property
    def sectors_per_request(self) -> float:
        return self.sectors / self.requests if self.requests else 0.0


@dataclass
class TrafficReport:
    """Counts of one launch, or of several with ``+=``. Buffers go by the names that the launch gave them."""

    reads: dict[str, BufferTraffic] = field(default_factory=dict)
    writes: dict[str, BufferTraffic] = field(default_factory=dict)
    instructions: Counter[str] = field(default_factory=Counter)  # executions by whole warps
    shared_requests: int = 0
    shared_passes: int = 0
    remote_stores: int = 0  # to other blocks' shared memory: one instruction of a warp to one block
    remote_bytes: int = 0
    worst_bank_conflict: int = 1  # ways; 1 is none
    worst_bank_conflict_at: str = ""

    def bytes_read(self, names: Iterable[str] | None = None) -> int:
        """Bytes of all sectors that requests asked for; repeated ones count again."""
        return SECTOR * sum(self.reads[name].sectors for name in (self.reads if names is None else names))

    def bytes_written(self, names: Iterable[str] | None = None) -> int:
        return SECTOR * sum(self.writes[name].sectors for name in (self.writes if names is None else names))

    def distinct_bytes(self) -> int:
        """Bytes of all sectors that were read or written, each counted once in each direction: what a cache that
        never evicts would move."""
        both = [*self.reads.values(), *self.writes.values()]
        return SECTOR * sum(traffic.distinct_sectors for traffic in both)

    def count(self, name: str, warps: int) -> None:
        self.instructions[name] += warps

    def global_access(self, access: Access, warp: Array, size: int, elements: int, writes: bool) -> None:
        """One instruction, all warps: ``elements`` of ``size`` bytes for each lane."""
        traffic, first, last = self._sectors(access, size * elements, writes)
        sectors, warps = np.concatenate([first, last]), np.concatenate([warp, warp])
        traffic.sectors += len(np.unique(warps * (len(traffic.touched) + 1) + sectors))
        traffic.requests += len(np.unique(warp))
        traffic.widths[8 * size * elements] += len(access.offset)
        traffic.touched[sectors] = True

    def _sectors(self, access: Access, size: int, writes: bool) -> tuple[BufferTraffic, Array, Array]:
        """Where to count, and the first and the last sector of each lane."""
        assert access.buffer is not None
        side = self.writes if writes else self.reads
        traffic = side.get(access.buffer.name)
        if traffic is None:
            sectors = (access.buffer.bytes + access.buffer.shift) // SECTOR + 2
            traffic = side[access.buffer.name] = BufferTraffic(access.buffer.bytes, touched=np.zeros(sectors, np.bool_))
        # Sectors lie at multiples of 32 of the true address; the views start at a multiple of 16.
        first = access.offset + (access.buffer.address - access.buffer.shift) % SECTOR
        return traffic, first // SECTOR, (first + size - 1) // SECTOR

    def bulk_copy(self, access: Access, size: int) -> None:
        """One instruction that copies ``size`` bytes of global into shared memory for each lane: a request of its own,
        and no bank conflicts."""
        traffic, first, last = self._sectors(access, size, False)
        traffic.sectors += int((last - first + 1).sum())
        traffic.requests += len(first)
        traffic.widths[8 * size] += len(first)
        traffic.touched[np.minimum(first[:, None] + np.arange(size // SECTOR + 1), last[:, None])] = True
        passes = -(-size // (4 * BANKS)) * len(first)
        self.shared_requests += passes
        self.shared_passes += passes

    def shared_access(self, offset: Array, group: Array, width: int, place: str) -> None:
        """``offset`` bytes within the block's memory; lanes of one ``group`` are served together."""
        ways = self._ways(offset, group, width, place)
        self.shared_requests += len(ways)
        self.shared_passes += int(ways.sum())

    def remote_access(self, offset: Array, group: Array, width: int, request: Array, place: str) -> None:
        """Likewise in other blocks' memory, those of one ``request`` in one block's."""
        self._ways(offset, group, width, place)
        self.remote_stores += len(np.unique(request))
        self.remote_bytes += len(offset) * width

    def _ways(self, offset: Array, group: Array, width: int, place: str) -> Array:
        """How often the busiest bank is used, for each group."""
        words = offset[:, None] // 4 + np.arange(max(width // 4, 1))
        key = np.unique(np.repeat(group, words.shape[1]).astype(np.int64) << 32 | words.ravel())
        groups, inverse = np.unique(key >> 32, return_inverse=True)
        busy = np.bincount(inverse * BANKS + (key & 0xFFFFFFFF) % BANKS, minlength=len(groups) * BANKS)
        ways = busy.reshape(-1, BANKS).max(1)
        if ways.max() > self.worst_bank_conflict:
            self.worst_bank_conflict, self.worst_bank_conflict_at = int(ways.max()), place
        return ways

    def __iadd__(self, other: TrafficReport) -> TrafficReport:
        for mine, theirs in ((self.reads, other.reads), (self.writes, other.writes)):
            for name, traffic in theirs.items():
                if name not in mine:
                    mine[name] = traffic
                    continue
                mine[name].requests += traffic.requests
                mine[name].sectors += traffic.sectors
                mine[name].widths += traffic.widths
                mine[name].touched = mine[name].touched | traffic.touched
        self.instructions += other.instructions
        self.shared_requests += other.shared_requests
        self.shared_passes += other.shared_passes
        self.remote_stores += other.remote_stores
        self.remote_bytes += other.remote_bytes
        if other.worst_bank_conflict > self.worst_bank_conflict:
            self.worst_bank_conflict = other.worst_bank_conflict
            self.worst_bank_conflict_at = other.worst_bank_conflict_at
        return self

    def __str__(self) -> str:
        lines = [
            f"{'buffer':<24}{'':>6}{'bytes':>12}{'moved':>12}{'distinct':>12}{'sectors/request':>17}  bits per lane"
        ]
        for side, direction in ((self.reads, "read"), (self.writes, "write")):
            for name, traffic in sorted(side.items()):
                widths = ", ".join(f"{bits}: {count}" for bits, count in sorted(traffic.widths.items()))
                moved, distinct = SECTOR * traffic.sectors, SECTOR * traffic.distinct_sectors
                lines.append(
                    f"{name:<24}{direction:>6}{traffic.bytes:>12}{moved:>12}{distinct:>12}"
                    f"{traffic.sectors_per_request:>17.2f}  {widths}"
                )
        conflict = f"worst bank conflict {self.worst_bank_conflict}-way"
        if self.worst_bank_conflict_at:
            conflict += f" at {self.worst_bank_conflict_at}"
        lines.append(f"shared memory: {self.shared_requests} requests in {self.shared_passes} passes, {conflict}")
        if self.remote_stores:
            lines.append(f"other blocks' shared memory: {self.remote_stores} stores of {self.remote_bytes} bytes")
        kinds = ", ".join(f"{name} {count}" for name, count in self.instructions.most_common())
        return "\n".join([*lines, f"instructions (by warps): {kinds}"])


def service_groups(lanes: Lanes, warp: Array, lane: Array, width: int) -> Array:
    """Which lanes of a shared-memory request are served together: whole warps up to 4 bytes, halves for 8, quarters
    for 16."""
    share = max(32 * 4 // max(width, 4), 1)
    return warp[lanes.index] * (32 // share) + lane[lanes.index].astype(np.int64) // share
