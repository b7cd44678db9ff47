"""The tensors of a problem on a device."""

from __future__ import annotations

from functools import cached_property, lru_cache

import torch
from torch import Tensor

from incline_fast.bench.problems import ALPHA, Data, Problem, Weights
from incline_fast.maps import AffineMap

__all__ = ["DeviceData"]


class DeviceData(Data):
    """Inputs and, in the form that each provider reads, copies of the map. They are made on the device: a gigabyte of
    them is cloned in a moment. Problems that differ in the number of tokens alone share them.
    """

    def __init__(self, problem: Problem, device: torch.device) -> None:
        super().__init__(problem)
        self.x, self.weight, self.bias = (t.to(device) for t in (self.x, self.weight, self.bias))
        self.norm_bias = None if self.norm_bias is None else self.norm_bias.to(device)
        self.device = device

    @cached_property
    def weights(self) -> DeviceWeights:
        """The copies of the map on the device."""
        problem = self.problem
        kinds = (problem.hidden_size, problem.rank, problem.dtype, problem.map_dtype)
        return _weights(*kinds, problem.copies, self.device)

    @property
    def maps(self) -> list[AffineMap]:
        """The copies as our kernels on a GPU read them."""
        return self.weights.maps


class DeviceWeights(Weights):
    """The copies on a device; a form is made when it is first asked for."""

    def __init__(
        self,
        hidden_size: int,
        rank: int | None,
        dtype: torch.dtype,
        map_dtype: torch.dtype,
        copies: int,
        device: torch.device,
    ) -> None:
        super().__init__(hidden_size, rank, dtype, map_dtype, copies)
        self.map = self.map.to(device=device)

    @cached_property
    def maps(self) -> list[AffineMap]:
        """For our kernels."""
        return [self.map.convert(Tensor.clone) for _ in range(self.copies)]

    @cached_property
    def folded(self) -> list[Tensor]:
        """``I + alpha W`` in x's dtype, ``[out, in]``: another rounding of the map than the op's definition has."""
        wide = self.map.to(torch.float64)
        product = wide.up[0] if wide.down is None else wide.up[0] @ wide.down[0]
        matrix = torch.eye(len(product), dtype=torch.float64, device=product.device).add_(product, alpha=ALPHA)
        narrow = matrix.to(self.dtype)
        return [narrow.clone() for _ in range(self.copies)]


# Only the last ones are kept: each form is a gigabyte.
_weights = lru_cache(maxsize=1)(DeviceWeights)
