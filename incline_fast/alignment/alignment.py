"""Alignment: the learned maps of one language pair with all that is needed to apply them, in one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from incline_fast.alignment import storage
from incline_fast.alignment.metadata import (
    MAX_SITE,
    AlignmentMetadata,
    Form,
    metadata_from_json,
    metadata_to_json,
)
from incline_fast.alignment.storage import AlignmentError
from incline_fast.arguments import matrix, plain
from incline_fast.maps import MAP_DTYPES, AffineMap
from incline_fast.models.identity import ModelIdentity, identify

__all__ = ["Alignment", "AlignmentError", "AlignmentMetadata", "Form"]


class Alignment:
    """Maps ``h -> W_l h + b_l`` per site l, the form in which they are applied, and where they come from. Immutable.

    Site l = 0 is the output of the embedding, l = 1..L the output of block l. The intervention at a site is
    ``h + alpha (W h + b)`` (form ``"add"``) or ``(1 - alpha) h + alpha (W h + b)`` (form ``"interpolate"``).

    Attributes:
        maps: site -> AffineMap of one map; hidden size equal for all.
        bias: site -> ``[d]``; sites without a bias are absent.
        form: ``"add"`` or ``"interpolate"``.
        metadata: see :class:`AlignmentMetadata`.
    """

    def __init__(
        self, maps: Mapping[int, AffineMap], bias: Mapping[int, Tensor], form: Form, metadata: AlignmentMetadata
    ) -> None:
        maps, bias = _by_site("maps", maps), _by_site("bias", bias)
        _check_parts(maps, bias, form, metadata)
        self.maps = {layer: maps[layer] for layer in sorted(maps)}
        self.bias = {layer: bias[layer] for layer in sorted(bias)}
        self.form: Form = form
        self.metadata = replace(metadata, hidden_size=self.hidden_size)

    @classmethod
    def from_maps(
        cls,
        maps: Mapping[int, AffineMap | ArrayLike],
        *,
        bias: Mapping[int, ArrayLike] | None = None,
        form: Form = "add",
        metadata: AlignmentMetadata | None = None,
    ) -> Alignment:
        """Build an alignment from maps learned elsewhere.

        Args:
            maps: site -> AffineMap, or a matrix W ``[d, d]`` that acts as ``W @ h``: a tensor or a NumPy array.
            bias: site -> ``[d]``, added to the map's output; a tensor or a NumPy array.
            form: ``"add"`` or ``"interpolate"``.
            metadata: what is known of their origin.

        Raises:
            AlignmentError: no maps, a site that is not a whole number >= 0, unequal sizes, non-finite values, a bias
                without a map, an unknown form.
        """
        try:
            made = {
                layer: m if isinstance(m, AffineMap) else AffineMap.dense(matrix(f"maps[{layer!r}]", m))
                for layer, m in maps.items()
            }
            added = {layer: matrix(f"bias[{layer!r}]", b) for layer, b in (bias or {}).items()}
        except (TypeError, ValueError) as error:
            raise AlignmentError(str(error)) from error
        return cls(made, added, form, metadata or AlignmentMetadata())

    @property
    def layers(self) -> list[int]:
        """The sites that have a map, ascending."""
        return list(self.maps)

    @property
    def hidden_size(self) -> int:
        """Width d of the residual stream that the maps act on."""
        return next(iter(self.maps.values())).hidden_size

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Alignment:
        """The same alignment with its maps in another dtype or on another device.

        The biases keep their dtype: ``b = mean(Y) - W mean(X)`` cancels most of ``W h``, so rounding it would cost
        accuracy and save only d numbers. It was computed for the map as it was: in a dimension whose mean is large
        beside its spread, rounding W to half precision moves every image by ``(W - rounded W) mean(X)``, about a tenth
        of a standard deviation in the early layers of Gemma 3 270M with bfloat16.

        Args:
            dtype: of the maps; None keeps it.
            device: of maps and biases; None keeps it.

        Raises:
            AlignmentError: a weight is too large for ``dtype`` (float16 overflows above 65504), or all weights of a
                site are too small for it and would become zero.
        """
        maps = {layer: m.to(dtype, device) for layer, m in self.maps.items()}
        for layer, m in maps.items():
            if m is not self.maps[layer] and not bool(m.up.any()) and bool(self.maps[layer].up.any()):
                raise AlignmentError(
                    f"the map of site {layer} is too small for {dtype}: all of its weights become zero"
                )
        bias = {layer: b.to(device=device) for layer, b in self.bias.items()}
        return Alignment(maps, bias, self.form, self.metadata)

    def quantize(self) -> Alignment:
        """The same alignment with int8 maps, a quarter of fp32's size; :meth:`AffineMap.quantize` says what it costs.

        Biases stay as they are, as in :meth:`to`, which also turns int8 maps back into floats.
        """
        return Alignment({layer: m.quantize() for layer, m in self.maps.items()}, self.bias, self.form, self.metadata)

    def with_metadata(self, **changes: Any) -> Alignment:
        """The same maps with some fields of the metadata replaced, for example ``recommended_alpha=0.2``."""
        return Alignment(self.maps, self.bias, self.form, replace(self.metadata, **changes))

    def save(self, path: str | PathLike[str]) -> None:
        """Write one safetensors file, atomically: a failed write leaves an older file under ``path`` intact."""
        storage.write(Path(path), *self.to_parts())

    def to_parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors by name and the document of an alignment's file."""
        tensors: dict[str, Tensor] = {}
        for layer, m in self.maps.items():
            for part in _MAP_PARTS:
                weights = getattr(m, part)
                if weights is not None:
                    tensors[f"layer.{layer}.{part}"] = weights[0]
        for layer, b in self.bias.items():
            tensors[f"layer.{layer}.bias"] = b
        document = {
            "form": self.form,
            "layers": {str(layer): [k for k in _PARTS if f"layer.{layer}.{k}" in tensors] for layer in self.maps},
            "metadata": metadata_to_json(self.metadata),
        }
        return tensors, document

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], document: Mapping[str, Any], where: str) -> Alignment:
        """The inverse of :meth:`to_parts`; every value is checked, and errors begin with ``where``.

        Raises:
            AlignmentError: the tensors are not those that the document lists, or either is not allowed.
        """
        if "bundle" in document:
            names = ", ".join(map(str, document["bundle"]))
            raise AlignmentError(f"{where} is a bundle of several alignments ({names}); open it with AlignmentBundle")
        parts = _parts(where, tensors, document)
        try:
            maps = {layer: _map(tensors, f"layer.{layer}", kinds) for layer, kinds in parts.items()}
            bias = {layer: tensors[f"layer.{layer}.bias"] for layer, kinds in parts.items() if "bias" in kinds}
            metadata = metadata_from_json(document.get("metadata"))
            return cls(maps, bias, document.get("form", "missing"), metadata)
        except (TypeError, ValueError) as error:
            raise AlignmentError(f"{where}: {error}") from error

    @classmethod
    def load(cls, path: str | PathLike[str], model: nn.Module | None = None) -> Alignment:
        """Read an alignment and, where a model is given, check that it was made for this model (:meth:`check`).

        Raises:
            FileNotFoundError: there is no such file.
            AlignmentError: the file is truncated, corrupt, from a later version, holds unexpected tensors, dtypes,
                shapes or non-finite values, or does not fit the model.
        """
        alignment = cls.from_parts(*storage.read(Path(path)), str(path))
        if model is not None:
            alignment.check(model)
        return alignment

    def check(self, model: nn.Module) -> None:
        """Refuse a model that these maps were not learned from. A field that the metadata leaves empty is not compared.

        Raises:
            AlignmentError: hidden size, number of layers, name or config differ; the message gives both values.
            UnsupportedModelError: the architecture is not known.
        """
        self.check_identity(identify(model))

    def check_identity(self, actual: ModelIdentity) -> None:
        """:meth:`check` for a model that is not loaded here.

        Raises:
            AlignmentError: as :meth:`check`.
        """
        if self.layers[-1] > actual.num_layers:
            raise AlignmentError(
                f"the alignment has a map for site {self.layers[-1]}; this model has sites 0..{actual.num_layers}"
            )
        known = self.metadata
        compared = {
            "hidden_size": (self.hidden_size, actual.hidden_size),
            "num_layers": (known.num_layers, actual.num_layers),
            "model_id": (_base_name(known.model_id), _base_name(actual.model_id)),
            "config_hash": (known.config_hash, actual.config_hash),
        }
        for name, (ours, theirs) in compared.items():
            if ours and theirs and ours != theirs:
                raise AlignmentError(
                    f"the alignment was made for another model: {name} is {ours!r} there and {theirs!r} here. "
                    "If the weights are the same, say so with alignment.with_metadata(...)"
                )

    def describe(self) -> dict[str, Any]:
        """Everything worth knowing as plain values: form, layers, sizes, dtypes and the metadata."""
        weights = sum(m.up.numel() + (0 if m.down is None else m.down.numel()) for m in self.maps.values())
        return {
            "form": self.form,
            "layers": self.layers,
            "ranks": {layer: m.rank for layer, m in self.maps.items()},
            "dtypes": sorted({str(m.dtype).removeprefix("torch.") for m in self.maps.values()}),
            "weights": weights,
            "biases": len(self.bias),
            "metadata": metadata_to_json(self.metadata),
        }

    def __repr__(self) -> str:
        about = self.metadata
        pair = f"{about.source_language or '?'} -> {about.target_language or '?'}"
        ranks = sorted(m.rank for m in self.maps.values() if m.rank is not None)
        kinds = [f"rank {ranks[0]}" if ranks[0] == ranks[-1] else f"ranks {ranks[0]}..{ranks[-1]}"] if ranks else []
        kind = " and ".join(kinds + ["dense"] * (len(ranks) < len(self.maps)))
        return (
            f"Alignment({pair}, {len(self.maps)} layers {self.layers[0]}..{self.layers[-1]}, {kind}, "
            f"hidden_size={self.hidden_size}, form={self.form!r}, estimator={about.estimator!r}, "
            f"model={about.model_id or 'unknown'!r}, n={about.n})"
        )


_MAP_PARTS = ("up", "down", "up_scale", "down_scale")
_PARTS = (*_MAP_PARTS, "bias")


def _parts(path: str, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> dict[int, list[str]]:
    """Site -> parts as the header lists them, after comparing the list with the tensors that are there."""
    listed = document.get("layers")
    if not isinstance(listed, dict):
        raise AlignmentError(f"{path}: the header lists no layers")
    parts: dict[int, list[str]] = {}
    for key, kinds in listed.items():
        known = isinstance(kinds, list) and "up" in kinds and all(kind in _PARTS for kind in kinds)
        # Only the canonical spelling (7, not 07) is taken, so that no two keys name the same site.
        if not (known and key.isascii() and key.isdecimal() and len(key) < 8 and str(int(key)) == key):
            raise AlignmentError(f"{path}: the header lists layer {key!r} with {kinds!r}; expected parts of {_PARTS}")
        parts[int(key)] = kinds
    expected = {f"layer.{layer}.{kind}" for layer, kinds in parts.items() for kind in kinds}
    missing, extra = sorted(expected - set(tensors)), sorted(set(tensors) - expected)
    if missing or extra:
        raise AlignmentError(f"{path}: missing tensors {missing}, unexpected tensors {extra}")
    return parts


def _map(tensors: Mapping[str, Tensor], layer: str, kinds: list[str]) -> AffineMap:
    """The map of ``layer``, such as ``"layer.7"``, from its parts ``kinds``; what is stored has no stack dimension."""
    parts: dict[str, Tensor] = {}
    for kind in _MAP_PARTS:
        if kind in kinds:
            tensor, dimensions = tensors[f"{layer}.{kind}"], 1 if kind.endswith("scale") else 2
            if tensor.dim() != dimensions:
                expected = "a vector" if dimensions == 1 else "a matrix"
                raise ValueError(f"tensor {layer}.{kind} has shape {tuple(tensor.shape)}; expected {expected}")
            parts[kind] = tensor.unsqueeze(0)
    down, up = parts.get("down"), parts["up"]
    return AffineMap(down, up, down_scale=parts.get("down_scale"), up_scale=parts.get("up_scale"))


def _base_name(model_id: str) -> str:
    """A hub model and its local copy share the last component: ``google/gemma-3-270m`` and ``./gemma-3-270m``."""
    return model_id.rstrip("/").rsplit("/", 1)[-1]


V = TypeVar("V")


def _by_site(name: str, values: Mapping[int, V]) -> dict[int, V]:
    """The values by site, a site being a whole number of Python, NumPy or torch."""
    named: dict[int, V] = {}
    for key, value in values.items():
        site = plain(key)
        if isinstance(site, bool) or not isinstance(site, int) or not 0 <= site <= MAX_SITE or site in named:
            raise AlignmentError(
                f"{name} has the site {key!r}; sites are whole numbers from 0 (embedding) to L, each there once"
            )
        named[site] = value
    return named


def _check_parts(
    maps: Mapping[int, AffineMap], bias: Mapping[int, Tensor], form: str, metadata: AlignmentMetadata
) -> None:
    if form not in get_args(Form):
        raise AlignmentError(f"form is {form!r}; allowed: {', '.join(get_args(Form))}")
    if not maps:
        raise AlignmentError("maps is empty; an alignment needs a map for at least one site")
    for layer, m in maps.items():
        if not isinstance(m, AffineMap):
            raise AlignmentError(
                f"maps[{layer}] is a {type(m).__name__}; expected an AffineMap, see Alignment.from_maps"
            )
        if m.num_maps != 1:
            raise AlignmentError(f"maps[{layer}] is a stack of {m.num_maps} maps; an alignment holds one per site")
    sizes = {layer: m.hidden_size for layer, m in maps.items()}
    if len(set(sizes.values())) > 1:
        raise AlignmentError(f"maps differ in hidden size: {sizes}")
    size = next(iter(sizes.values()))
    if metadata.hidden_size not in (None, size):
        raise AlignmentError(f"metadata.hidden_size is {metadata.hidden_size}; the maps have {size}")
    for layer, b in bias.items():
        if layer not in maps:
            raise AlignmentError(f"bias is given for site {layer}, which has no map")
        if tuple(b.shape) != (size,) or not b.is_floating_point() or b.dtype not in MAP_DTYPES:
            raise AlignmentError(f"bias[{layer}] is {b.dtype} {tuple(b.shape)}; expected floats [{size}]")
    for layer, m in maps.items():
        values = (m.up, m.down, m.up_scale, m.down_scale, bias.get(layer))
        if any(v.is_meta for v in values if v is not None):
            raise AlignmentError(f"the map or bias of site {layer} is on the meta device: it has no values")
        if not all(bool(v.isfinite().all()) for v in values if v is not None):
            raise AlignmentError(f"the map or bias of site {layer} holds NaN or infinite values")
