"""Small alignments and models for the tests of the plugin that need no vLLM."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from incline_fast.alignment.alignment import Alignment, AlignmentMetadata
from incline_fast.maps import AffineMap
from incline_fast.models.identity import ModelIdentity
from incline_fast.serving.config import BankLayout, ServingConfig

D, LAYERS = 16, 3
IDENTITY = ModelIdentity("tiny", "0123456789abcdef", LAYERS, D)


def alignment(seed: int = 0, *, rank: int | None = 4, sites: list[int] | None = None, **about: object) -> Alignment:
    g = torch.Generator().manual_seed(seed)
    form = about.pop("form", "add")
    known = {"model_id": "tiny", "config_hash": IDENTITY.config_hash, "num_layers": LAYERS, "recommended_alpha": 0.2}
    maps, bias = {}, {}
    for site in range(LAYERS + 1) if sites is None else sites:
        if rank is None:
            maps[site] = AffineMap.dense(torch.randn(D, D, generator=g))
        else:
            maps[site] = AffineMap.low_rank(torch.randn(rank, D, generator=g), torch.randn(D, rank, generator=g))
        if site % 2:
            bias[site] = torch.randn(D, generator=g)
    return Alignment.from_maps(maps, bias=bias, form=form, metadata=AlignmentMetadata(**{**known, **about}))


def folder(path: Path, **alignments: Alignment) -> ServingConfig:
    path.mkdir(exist_ok=True)
    for name, saved in alignments.items():
        saved.save(path / f"{name}.safetensors")
    return ServingConfig(str(path), max_maps=3)


LAYOUT = BankLayout(rank=8, max_maps=3, dtype="float32")


class FusedNorm(nn.Module):
    """Like vLLM's RMSNorm: adds a residual that it is given, and returns both."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if residual is not None:
            x = x + residual
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight
        return y if residual is None else (y, x)


class Block(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.input_layernorm = FusedNorm(size)
        self.post_attention_layernorm = FusedNorm(size)
        self.mlp = nn.Linear(size, size)

    def forward(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if residual is None:
            residual = x
            x = self.input_layernorm(x)
        else:
            x, residual = self.input_layernorm(x, residual)
        x, residual = self.post_attention_layernorm(x, residual)
        return self.mlp(x), residual


class Backbone(nn.Module):
    def __init__(self, size: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(size) for _ in range(layers))
        self.norm = FusedNorm(size)

    def forward(self, x: Tensor, states: list[Tensor] | None = None) -> Tensor:
        """The last states; ``states`` receives the residual stream before each site, as a hook would see it."""
        residual = None
        for layer in self.layers:
            x, residual = layer(x, residual)
        return self.norm(x, residual)[0]


class Model(nn.Module):
    """Built as vLLM builds a Llama: no attention, so that rows are independent."""

    def __init__(self, size: int = D, layers: int = LAYERS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = Backbone(size, layers)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Config:
    model_type = "llama"
    num_hidden_layers = LAYERS
    hidden_size = D
