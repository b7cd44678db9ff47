"""Sentence retrieval per layer: ``python -m benchmarks.paper.retrieval --data DIR``.

Each of n held-out sentences is to find its translation among the n English ones, by the cosine of their last tokens'
states. Beside the maps stand baselines that do not use which sentence belongs to which: each side's states as they are,
less their mean, divided by their standard deviations, and whitened; all fitted on the same pairs.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.paper.common import start
from incline_fast.evaluation import paired_bootstrap
from incline_fast.fitting.estimators import get_estimator
from incline_fast.states import HiddenStates, collect
from incline_fast.text.lines import text_lines

__all__ = ["METHODS", "found", "found_by_site", "table"]

SHRINKAGE = 0.1
"""Share of the mean variance that whitening adds to every direction: there are fewer sentences than dimensions."""

METHODS = ("plain", "centred", "scaled", "whitened", "ridge map", "ridge map, centred", "minimum-norm map, centred")


def whitening(states: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and the matrix ``C^(-1/2)`` of the shrunken covariance, for states ``[n, d]``."""
    mean = states.mean(0)
    covariance = (states - mean).T @ (states - mean) / (len(states) - 1)
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=0) + SHRINKAGE * covariance.diagonal().mean()
    return mean, vectors * values.rsqrt() @ vectors.T


def sides(method: str, fit: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Source and target states ``[n, d]`` of the test sentences as a method compares them."""
    x, y = test
    if method == "plain":
        return x, y
    if method == "whitened":
        (mean_x, by_x), (mean_y, by_y) = map(whitening, fit)
        return (x - mean_x) @ by_x, (y - mean_y) @ by_y
    if method in ("centred", "scaled"):
        both = [(t - f.mean(0)) / (f.std(0) if method == "scaled" else 1) for t, f in zip(test, fit, strict=True)]
        return both[0], both[1]
    estimator = "min_norm" if method.startswith("minimum") else "affine_ridge"
    predicted = get_estimator(estimator)(fit[0].float(), fit[1].float(), 1.0 if estimator == "affine_ridge" else None)
    mapped = predicted.predict(x.float()).double()
    if method == "ridge map":
        return mapped, y
    return mapped - fit[1].mean(0), y - fit[1].mean(0)


def found(method: str, fit: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Tensor:
    """Bool ``[n]``: whether a source sentence's nearest target sentence is its translation.

    Args:
        method: one of :data:`METHODS`.
        fit: source and target states of the sentences to fit.
        test: those of the sentences to find.
    """
    fit, test = ((a.double(), b.double()) for a, b in (fit, test))
    x, y = sides(method, fit, test)
    unit = [torch.nn.functional.normalize(side, dim=-1) for side in (x, y)]
    return (unit[0] @ unit[1].T).argmax(1) == torch.arange(len(x))


def found_by_site(fit: Sequence[HiddenStates], test: Sequence[HiddenStates]) -> dict[str, Tensor]:
    """Method -> bool ``[S, n]``: :func:`found` at each of S sites, of source and target states to fit and to find."""
    x, y = fit
    u, v = test
    return {method: torch.stack([found(method, (x[s], y[s]), (u[s], v[s])) for s in x]) for method in METHODS}


def table(
    right: Mapping[str, Tensor], sites: Sequence[int], about: dict[str, Any], after: dict[str, Any]
) -> list[dict[str, Any]]:
    """One row per site and method, and one over all sites, each against scaling.

    Args:
        right: method -> bool ``[S, n]``.
        sites: S of them. Site ``"mean"`` is each sentence's share of them; its interval draws sentences, not sites.
        about: first columns of every row.
        after: last columns of every row.
    """
    rows = []
    for place, site in [*enumerate(sites), (slice(None), "mean")]:
        share = {method: own[place].float().reshape(-1, own.shape[1]).mean(0) for method, own in right.items()}
        for method, own in share.items():
            gain = paired_bootstrap(own, share["scaled"])
            over = {f"over_scaled_{name}": round(getattr(gain, name), 4) for name in ("mean", "low", "high")}
            key = about | {"site": site, "method": method, "accuracy": round(float(own.mean()), 4)}
            rows.append(key | over | {"n": len(own)} | after)
    return rows


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="folder with tatoeba")
    parser.add_argument("--languages", default="fra,deu,swh")
    parser.add_argument("--pairs", type=int, default=200, help="sentences to fit")
    parser.add_argument("--test", type=int, default=100, help="sentences to find")
    parser.add_argument("--every", type=int, default=3, help="measure every so many sites, the last among them")
    run = start(__doc__, parser)
    arguments = run.arguments
    layers = list(range(run.num_layers, 0, -arguments.every))[::-1]
    right: dict[str, dict[str, Tensor]] = {}
    rows = []
    for language in arguments.languages.split(","):
        states = []
        for side in (language, "eng"):
            path = arguments.data / "tatoeba" / f"tatoeba.{language}-eng.{side}"
            texts = list(text_lines(path))[: arguments.pairs + arguments.test]
            states.append(collect(run.model, run.tokenizer, texts, layers=layers))
        fit, test = (
            tuple({site: own[rows] for site, own in side.items()} for side in states)
            for rows in (slice(arguments.pairs), slice(arguments.pairs, None))
        )
        right[language] = found_by_site(fit, test)
        rows += table(right[language], layers, {"language": language}, {"pairs": arguments.pairs})
    pooled = {method: torch.cat([own[method] for own in right.values()], 1) for method in METHODS}
    rows += table(pooled, layers, {"language": "all"}, {"pairs": arguments.pairs})
    run.write("retrieval", rows, ("language", "site", "method"))
    for row in rows:
        if (row["language"], row["site"]) == ("all", "mean"):
            print(f"{row['method']:<26} {row['accuracy']:.3f}")


if __name__ == "__main__":
    main()
