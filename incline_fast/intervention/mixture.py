"""Batches of several languages: the maps of all of them stacked per site, and which row of a batch uses which.

One launch of the op per site edits the whole batch; ``row_map`` names each row's map in the stack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
        place: int32, per language its map in the stack, -1 for a language without a map here; one more entry at the
            end, -1, is for rows without a language.
    """

    map: AffineMap
    bias: Tensor | None
    place: Tensor


@dataclass(frozen=True)
class RowSettings:
    """What is done with each row of a batch: tensors ``[B]``.

    Attributes:
        alpha: strength, 0 for a row that keeps its bits.
        beta: factor of the state itself, None: 1 for all.
        language: int64 number of the language, -1 for a row that keeps its bits; None: there is one alignment.
    """

    alpha: Tensor
    beta: Tensor | None = None
    language: Tensor | None = None

    def to(self, device: torch.device) -> RowSettings:
        """The same on another device."""
        parts = (self.alpha, self.beta, self.language)
        return RowSettings(*(None if part is None else part.to(device) for part in parts))  # type: ignore[arg-type]

    def repeated(self, repeats: int) -> RowSettings:
        """Every row ``repeats`` times, for beams and several sequences per prompt."""
        parts = (self.alpha, self.beta, self.language)
        return RowSettings(
            *(None if part is None else part.repeat_interleave(repeats) for part in parts)  # type: ignore[arg-type]
        )


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
        edited = zip(languages, chosen, strict=True)
        number_of = [self.languages.index(name) if name is not None and strength else -1 for name, strength in edited]
        return RowSettings(alpha, beta, torch.tensor(number_of, device="cpu"))

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
        here = {name: one for name, one in self.read().items() if site in one.maps}
        place = torch.full((len(self.languages) + 1,), -1, dtype=torch.int32, device="cpu")
        for index, name in enumerate(here):
            place[self.languages.index(name)] = index
        map = AffineMap.stack(_alike([one.maps[site] for one in here.values()]))
        biases = [one.bias.get(site) for one in here.values()]
        if all(bias is None for bias in biases):
            return SiteStack(map, None, place)
        dtype = torch.float64 if any(b is not None and b.dtype is torch.float64 for b in biases) else torch.float32
        none = torch.zeros(map.hidden_size, dtype=dtype, device="cpu")
        return SiteStack(map, torch.stack([none if bias is None else bias.to("cpu", dtype) for bias in biases]), place)


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
