"""Batches of several languages: the maps of all of them stacked per site, and which row of a batch uses which.

One launch of the op per site edits the whole batch; ``row_map`` names each row's map in the stack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from incline_fast.alignment.alignment import Alignment
from incline_fast.arguments import number
from incline_fast.maps import AffineMap

__all__ = ["Mixture", "RowSettings", "SiteStack"]


@dataclass(frozen=True)
class SiteStack:
    """The maps of one site.

    Attributes:
        map: a stack of G maps.
        bias: ``[G, d]``, zeros for a map without one; None if none has one.
        kind: number of this kind of site: those at which the same languages have a map, so that a row uses the same
            map of the stack at all of them. See :attr:`RowSettings.maps`.
    """

    map: AffineMap
    bias: Tensor | None
    kind: int


@dataclass(frozen=True)
class RowSettings:
    """What is done with each row of a batch: tensors ``[B]``.

    Attributes:
        alpha: strength, 0 for a row that keeps its bits; one tensor for all sites, or one per kind of site.
        beta: factor of the state itself, likewise; None: 1 for all.
        maps: per kind of site int32, each row's map in the stack, -1 for one that keeps its bits; None: all have map 0.
        name: the argument of ``intervene`` that has one value per row.
    """

    alpha: tuple[Tensor, ...]
    beta: tuple[Tensor, ...] | None = None
    maps: tuple[Tensor, ...] | None = None
    name: str = "languages"

    @classmethod
    def of_one_alignment(cls, alpha: tuple[Tensor, ...], form: str) -> RowSettings:
        """Strengths of one alignment, which has one map per site: one tensor for all sites, or one per site."""
        maps = None if all(bool(one.all()) for one in alpha) else tuple((one != 0).int() - 1 for one in alpha)
        return cls(alpha, tuple(1 - one for one in alpha) if form == "interpolate" else None, maps, "alpha")

    @property
    def count(self) -> int:
        """B."""
        return len(self.alpha[0])

    @cached_property
    def active(self) -> Tensor | None:
        """bool, False for rows that keep their bits everywhere; None: there are none. Kept, as every pass asks."""
        active = torch.stack([one != 0 for one in self.alpha]).any(0)
        return None if bool(active.all()) else active

    def each(self, function: Callable[[Tensor], Tensor]) -> RowSettings:
        """The same with ``function`` applied to every tensor, for other rows or another device."""
        beta = None if self.beta is None else tuple(map(function, self.beta))
        maps = None if self.maps is None else tuple(map(function, self.maps))
        return RowSettings(tuple(map(function, self.alpha)), beta, maps, self.name)


class Mixture:
    """Alignments of several languages, of which only those that are asked for are read.

    Args:
        alignments: language -> alignment; an :class:`~incline_fast.AlignmentBundle` reads them one by one.
        alpha: one strength, or one per language; not read where ``row_alpha`` is given.
        row_alpha: ``[B]``, one strength per row of the batch, or None.

    Attributes:
        languages: those read so far, in the order in which they were asked for.
    """

    def __init__(self, alignments: Mapping[str, Alignment], alpha: object, row_alpha: Tensor | None) -> None:
        self._alignments = alignments
        self._alpha = alpha
        self._row_alpha = row_alpha
        self.languages: list[str] = []

    def rows(self, languages: Sequence[str | None]) -> RowSettings:
        """The settings of a batch whose rows are in these languages; None for a row that is not edited.

        Raises:
            ValueError: no rows, an unknown language, a strength per row for another number of rows, or a language
                without a strength.
        """
        if isinstance(languages, str) or not languages:
            raise ValueError(f"languages is {languages!r}; expected one language or None per row of the batch")
        for name in dict.fromkeys(name for name in languages if name is not None):
            if name not in self._alignments:
                raise ValueError(f"languages has {name!r}; allowed: {', '.join(self._alignments)}, or None")
            if name not in self.languages:
                self.languages.append(name)
        if self._row_alpha is not None and len(self._row_alpha) != len(languages):
            raise ValueError(
                f"alpha has {len(self._row_alpha)} values, languages {len(languages)}; one of each per row"
            )
        chosen = [0.0 if name is None else self._strength(name, row) for row, name in enumerate(languages)]
        alpha = torch.tensor(chosen, dtype=torch.float32, device="cpu")
        blended = [name is not None and self._alignments[name].form == "interpolate" for name in languages]
        rest = torch.where(torch.tensor(blended, device="cpu"), 1 - alpha, torch.ones_like(alpha))
        # By all languages read so far, not by these rows: code compiled with a beta also runs batches without one.
        beta = rest if any(self._alignments[name].form == "interpolate" for name in self.languages) else None
        edited = [name if strength else None for name, strength in zip(languages, chosen, strict=True)]
        maps = []
        for kind in self._kinds():
            places = [kind.index(name) if name in kind else -1 for name in edited]
            maps.append(torch.tensor(places, dtype=torch.int32, device="cpu"))
        return RowSettings((alpha,), None if beta is None else (beta,), tuple(maps))

    def _kinds(self) -> list[tuple[str, ...]]:
        """For each kind of site the languages that have a map there, in the order of the stack."""
        return list(dict.fromkeys(self._here(site) for site in self.sites()))

    def _here(self, site: int) -> tuple[str, ...]:
        return tuple(name for name, one in self.read().items() if site in one.maps)

    def _strength(self, name: str, row: int) -> float:
        if self._row_alpha is not None:
            return float(self._row_alpha[row])
        if isinstance(self._alpha, Mapping):
            if name not in self._alpha:
                raise ValueError(f"alpha has no strength for {name!r}; it has {', '.join(map(str, self._alpha))}")
            return float(number(f"alpha[{name!r}]", self._alpha[name]))
        return float(number("alpha", self._alpha))

    def read(self) -> dict[str, Alignment]:
        """The alignments of the languages asked for so far."""
        return {name: self._alignments[name] for name in self.languages}

    def sites(self) -> list[int]:
        """All sites at which any of these has a map."""
        return sorted({site for alignment in self.read().values() for site in alignment.layers})

    def stack(self, site: int) -> SiteStack:
        """The maps of one site as one stack, in a form that holds all of them without loss.

        Maps of one form, rank and dtype stay as they are; factors of different ranks are filled up with zeros; factors
        beside dense maps, and int8 beside floats, are multiplied out.
        """
        here = self._here(site)
        kind = self._kinds().index(here)
        read = [self._alignments[name] for name in here]
        map = AffineMap.stack(_alike([one.maps[site] for one in read]))
        biases = [one.bias.get(site) for one in read]
        if all(bias is None for bias in biases):
            return SiteStack(map, None, kind)
        dtype = torch.float64 if any(b is not None and b.dtype is torch.float64 for b in biases) else torch.float32
        none = torch.zeros(map.hidden_size, dtype=dtype, device="cpu")
        return SiteStack(map, torch.stack([none if bias is None else bias.to("cpu", dtype) for bias in biases]), kind)


def _alike(maps: Sequence[AffineMap]) -> list[AffineMap]:
    """The maps in one form, rank and dtype."""
    if len({(one.rank, one.dtype) for one in maps}) == 1:
        return list(maps)
    dtypes = {one.dtype for one in maps}
    if len(dtypes) > 1:
        wide = torch.float64 if torch.float64 in dtypes else torch.float32
        maps = [one.to(wide) for one in maps]
    if any(one.down is None for one in maps) or maps[0].dtype is torch.int8:
        maps = [one.to(torch.float32) if one.dtype is torch.int8 else one for one in maps]
    if all(one.down is not None for one in maps):
        rank = max(one.down.shape[1] for one in maps if one.down is not None)
        return [_of_rank(one, rank) for one in maps]
    return [AffineMap.dense(one.as_dense()) for one in maps]


def _of_rank(map: AffineMap, rank: int) -> AffineMap:
    assert map.down is not None
    missing = rank - map.down.shape[1]
    down = torch.nn.functional.pad(map.down, (0, 0, 0, missing))
    return AffineMap.low_rank(down, torch.nn.functional.pad(map.up, (0, missing)))
