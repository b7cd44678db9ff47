"""Sentence retrieval per layer: ``python -m benchmarks.paper.retrieval --data DIR``.

Each of n held-out sentences is to find its translation among the n English ones, by the cosine of their last tokens'
states. Beside the maps stand baselines that do not use which sentence belongs to which: each side's states as they are,
less their mean, divided by their standard deviations, and whitened; all fitted on the same pairs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.paper.common import start
from incline_fast.evaluation import paired_bootstrap
from incline_fast.fitting.estimators import get_estimator
from incline_fast.states import collect
from incline_fast.text.lines import text_lines

__all__ = ["METHODS", "found"]

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
    rows = []
    for language in arguments.languages.split(","):
        states = []
        for side in (language, "eng"):
            path = arguments.data / "tatoeba" / f"tatoeba.{language}-eng.{side}"
            texts = list(text_lines(path))[: arguments.pairs + arguments.test]
            states.append(collect(run.model, run.tokenizer, texts, layers=layers))
        for site in layers:
            fit = states[0][site][: arguments.pairs], states[1][site][: arguments.pairs]
            test = states[0][site][arguments.pairs :], states[1][site][arguments.pairs :]
            right = {method: found(method, fit, test) for method in METHODS}
            for method, own in right.items():
                gain = paired_bootstrap(own.float(), right["scaled"].float())
                shown = {name: round(getattr(gain, name), 4) for name in ("mean", "low", "high")}
                row = {
                    "language": language,
                    "site": site,
                    "method": method,
                    "accuracy": round(float(own.float().mean()), 4),
                }
                rows.append(
                    row | {f"over_scaled_{k}": v for k, v in shown.items()} | {"n": len(own), "pairs": len(fit[0])}
                )
    run.write("retrieval", rows, ("language", "site", "method"))
    for method in METHODS:
        means = [row["accuracy"] for row in rows if row["method"] == method and row["site"] >= layers[len(layers) // 2]]
        print(f"{method:<26} {sum(means) / len(means):.3f}")


if __name__ == "__main__":
    main()
