"""The resident maps of one worker: per site one stack of fixed size and address, whose slots are written at run time.

A compiled or captured graph reads the same addresses in every step. So maps are copied into slots, and which slot a row
uses is written into ``row_map`` (:mod:`incline_fast.serving.plan`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from incline_fast.alignment.alignment import Alignment
from incline_fast.maps import AffineMap
from incline_fast.ops._extension import EXTENSION
from incline_fast.packing import pack
from incline_fast.serving.config import BankLayout, ServingConfig
from incline_fast.serving.errors import RequestError, ServingError

__all__ = ["Bank", "SiteBank"]

_GPU_RANK = 16  # kernels of a GPU read rows of ``up`` that begin at a multiple of 16 bytes


class SiteBank:
    """The stack of one site.

    Args:
        hidden_size: d.
        rank: of the factors; None: the maps are dense.
        slots: number of maps.
        dtype: of the maps.
        device: where the op runs.

    Attributes:
        up: what the op takes as ``up``, in the layout of the device's kernels.
        down: likewise, None for dense maps.
        bias: ``[slots, d]``, zeros where a map has none.
    """

    def __init__(
        self, hidden_size: int, rank: int | None, slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._hidden_size = hidden_size
        self._rank = rank
        self._dtype = dtype
        self._packs = device.type == "cpu" and EXTENSION is not None
        depth = hidden_size if rank is None else rank
        empty_up = self._laid_out(torch.zeros(1, hidden_size, depth, dtype=dtype))
        self.up = empty_up.repeat(slots, *[1] * (empty_up.dim() - 1)).to(device)
        self.down: Tensor | None = None
        if rank is not None:
            empty_down = self._laid_out(torch.zeros(1, rank, hidden_size, dtype=dtype))
            self.down = empty_down.repeat(slots, *[1] * (empty_down.dim() - 1)).to(device)
        self.bias = torch.zeros(slots, hidden_size, dtype=torch.float32, device=device)

    def write(self, slot: int, map: AffineMap, bias: Tensor | None) -> None:
        """Copy a map into a slot; a smaller rank is filled up with zeros, factors are multiplied for dense banks."""
        up, down = self._factors(map)
        self.up[slot].copy_(self._laid_out(up)[0])
        if self.down is not None and down is not None:
            self.down[slot].copy_(self._laid_out(down)[0])
        if bias is None:
            self.bias[slot].zero_()
        else:
            self.bias[slot].copy_(bias)

    def num_bytes(self) -> int:
        """Memory of the stack."""
        return sum(t.numel() * t.element_size() for t in (self.up, self.down, self.bias) if t is not None)

    def _factors(self, map: AffineMap) -> tuple[Tensor, Tensor | None]:
        if self._rank is None:
            exact = map.to(torch.float64) if map.is_low_rank else map.to(self._dtype)
            return exact.as_dense().to(self._dtype), None
        map = map.to(self._dtype)
        if map.down is None or map.rank is None or map.rank > self._rank:
            raise RequestError(f"{map} does not fit a bank of rank {self._rank}", "path", str(map))
        up = torch.zeros(1, self._hidden_size, self._rank, dtype=self._dtype)
        down = torch.zeros(1, self._rank, self._hidden_size, dtype=self._dtype)
        up[:, :, : map.rank] = map.up
        down[:, : map.rank] = map.down
        return up, down

    def _laid_out(self, weight: Tensor) -> Tensor:
        return pack(weight) if self._packs else weight.contiguous()


class Bank:
    """All sites' stacks, and which slot holds which alignment.

    Args:
        config: for the limit of memory.
        layout: ranks, slots and dtype.
        num_sites: number of sites of the model.
        hidden_size: d.
        device: where the model is.

    Raises:
        ServingError: the stacks would take more than ``max_bytes``.
    """

    def __init__(
        self, config: ServingConfig, layout: BankLayout, num_sites: int, hidden_size: int, device: torch.device
    ) -> None:
        rank = layout.rank
        if rank is not None:
            rank = -(-rank // _GPU_RANK) * _GPU_RANK
        self.hidden_size = hidden_size
        weights = hidden_size * hidden_size if rank is None else 2 * rank * hidden_size
        needed = num_sites * layout.max_maps * (weights * config.dtype.itemsize + 4 * hidden_size)
        if config.max_bytes is not None and needed > config.max_bytes:
            raise ServingError(
                f"{layout.max_maps} resident maps of {'dense' if rank is None else f'rank {rank}'} form at {num_sites} "
                f"sites take {needed} bytes; max_bytes is {config.max_bytes}. Lower max_maps or max_rank"
            )
        self.sites = [SiteBank(hidden_size, rank, layout.max_maps, config.dtype, device) for _ in range(num_sites)]
        self.slots: list[str | None] = [None] * layout.max_maps
        self._site_slots: list[NDArray[np.int32]] = [np.full(num_sites, -1, np.int32) for _ in self.slots]

    def contents(self) -> list[str]:
        """Hashes of the resident alignments."""
        return [content for content in self.slots if content is not None]

    def slot_of(self, content: str) -> NDArray[np.int32] | None:
        """Per site the slot of an alignment, -1 at sites that it has no map for; None: it is not resident."""
        return self._site_slots[self.slots.index(content)] if content in self.slots else None

    def load(self, content: str, alignment: Alignment, keep: Collection[str]) -> None:
        """Make an alignment resident, if necessary in the slot of one that is not in ``keep``.

        Raises:
            RequestError: every slot is taken by an alignment that is named or in use.
        """
        if content in self.slots:
            return
        free = [slot for slot, held in enumerate(self.slots) if held is None]
        free += [slot for slot, held in enumerate(self.slots) if held is not None and held not in keep]
        if not free:
            raise RequestError(
                f"all {len(self.slots)} slots are taken by maps that are loaded or still used by running requests; "
                "unload one, or raise max_maps",
                "name",
            )
        slot = free[0]
        self.slots[slot] = None
        self._site_slots[slot] = np.full(len(self.sites), -1, np.int32)
        for site, map in alignment.maps.items():
            self.sites[site].write(slot, map, alignment.bias.get(site))
        self._site_slots[slot][alignment.layers] = slot
        self.slots[slot] = content

    def write_bias(self, slot: int, bias: Tensor) -> None:
        """Put a map of zeros and the same bias into a free slot of every site; the slot still counts as free."""
        zeros = torch.zeros(1, self.hidden_size, dtype=torch.float32)
        zero = AffineMap.low_rank(zeros, zeros.T)
        for site in self.sites:
            site.write(slot, zero, bias)

    def num_bytes(self) -> int:
        """Memory of all stacks."""
        return sum(site.num_bytes() for site in self.sites)

    def buffers(self, site: int) -> Sequence[tuple[str, Tensor | None]]:
        """The tensors of a site that the op reads."""
        bank = self.sites[site]
        return (("down", bank.down), ("up", bank.up), ("bias", bank.bias))
