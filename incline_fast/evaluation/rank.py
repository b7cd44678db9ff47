"""How similar other languages' states are to the reference language's, per layer: Language Ranker (Li et al., 2024).

For parallel sentences, ``s_l = mean_i cos(h_i,l(language), h_i,l(reference))`` at every site l (arXiv 2404.11553); a
language's score is the mean over the sites. States of a language model lie in a narrow cone, so that any two of them
have a high cosine. So the similarity is also computed after each language's mean is subtracted, which leaves what
differs between sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from incline_fast.files import write_table
from incline_fast.models.identity import identify
from incline_fast.states import HiddenStates, collect

__all__ = ["Ranking", "rank_languages", "similarity"]


@dataclass(frozen=True)
class Ranking:
    """Similarity to the reference language.

    Attributes:
        reference: its name.
        n: number of sentences.
        raw: language -> site -> mean cosine.
        centred: the same after each language's mean state was subtracted.
    """

    reference: str
    n: int
    raw: dict[str, dict[int, float]]
    centred: dict[str, dict[int, float]]

    @property
    def order(self) -> list[str]:
        """Languages by their mean raw similarity over the sites, the most similar first."""
        return sorted(self.raw, key=lambda language: -_mean(self.raw[language]))

    def table(self) -> str:
        """One line per language: both scores and the site of the highest similarity after centring."""
        width = max(map(len, self.raw))
        lines = [f"{'':<{width}}  {'cosine':>7}  {'centred':>7}  most alike, centred (n = {self.n})"]
        for language in self.order:
            centred = self.centred[language]
            best = max(centred, key=lambda site: centred[site])
            scores = f"{_mean(self.raw[language]):>7.4f}  {_mean(centred):>7.4f}"
            lines.append(f"{language:<{width}}  {scores}  site {best}, {centred[best]:.4f}")
        return "\n".join(lines)

    def rows(self) -> list[dict[str, str | int | float]]:
        """One row per language and site."""
        return [
            {
                "language": language,
                "reference": self.reference,
                "site": site,
                "cosine": round(value, 6),
                "centred": round(self.centred[language][site], 6),
                "n": self.n,
            }
            for language in self.order
            for site, value in self.raw[language].items()
        ]

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write the rows, whole or not at all."""
        rows = self.rows()
        write_table(rows, list(rows[0]), path)


def rank_languages(
    model: nn.Module,
    tokenizer: Any,
    reference: Sequence[str],
    texts: Mapping[str, Sequence[str]],
    *,
    reference_language: str = "en",
    template: str | None = None,
    layers: Sequence[int] | None = None,
    progress: bool = True,
) -> Ranking:
    """Measure how similar the states of other languages are to those of the reference language.

    Args:
        model: a decoder of transformers.
        tokenizer: its tokenizer.
        reference: n sentences.
        texts: language -> their n translations.
        reference_language: its name, for tables.
        template: prompt around each sentence; None for bare sentences.
        layers: sites; 1..L by default.
        progress: show progress bars.

    Raises:
        ValueError: no language, or another number of sentences.
        PromptError: a sentence cannot be used.
    """
    if not texts:
        raise ValueError("texts is empty; expected {language: sentences}")
    for language, sentences in texts.items():
        if len(sentences) != len(reference):
            raise ValueError(
                f"texts[{language!r}] has {len(sentences)} sentences, reference {len(reference)}; "
                "sentence i must match sentence i"
            )

    sites = range(1, identify(model).num_layers + 1) if layers is None else layers

    def states(sentences: Sequence[str]) -> HiddenStates:
        return collect(model, tokenizer, sentences, template=template, layers=sites, progress=progress)

    target = states(reference)
    raw: dict[str, dict[int, float]] = {}
    centred: dict[str, dict[int, float]] = {}
    for language, sentences in texts.items():
        own = states(sentences)
        raw[language] = {site: similarity(own[site], target[site]) for site in target}
        centred[language] = {site: similarity(own[site], target[site], centre=True) for site in target}
    return Ranking(reference_language, len(reference), raw, centred)


def similarity(a: Tensor, b: Tensor, *, centre: bool = False) -> float:
    """Mean cosine of the rows of ``a`` and ``b``, ``[n, d]`` each, computed in fp64.

    Args:
        a, b: states of the same sentences.
        centre: subtract each side's mean first.
    """
    a, b = a.double(), b.double()
    if centre:
        a, b = a - a.mean(0), b - b.mean(0)
    return float(torch.cosine_similarity(a, b, dim=-1).mean())


def _mean(values: Mapping[int, float]) -> float:
    return sum(values.values()) / len(values)
