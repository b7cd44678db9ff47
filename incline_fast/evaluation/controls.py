"""Controls: edits of the same form that use less information. A gain that a control has too is not due to the maps.

Two more comparisons need no alignment: alpha = 0 (the plain model) and the oracle (the true target state).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from incline_fast.alignment import Alignment, AlignmentMetadata
from incline_fast.fitting.estimators import Estimator, Lam, get_estimator, shuffled
from incline_fast.fitting.fit import fit_states

__all__ = ["CONTROLS", "fit_controls"]

CONTROLS = ("constant mean", "mean difference", "shuffled pairs", "source to itself", "minimum norm, added")


def fit_controls(
    X: Mapping[int, Tensor],
    Y: Mapping[int, Tensor],
    *,
    estimator: str | Estimator = "affine_ridge",
    lam: Lam | None = 1.0,
    seed: int = 0,
    metadata: AlignmentMetadata | None = None,
) -> dict[str, Alignment]:
    """All controls of one language, fitted from the states that the maps were fitted from.

        constant mean        h -> mean(Y): the same for every sentence
        mean difference      h + mean(Y) - mean(X): contrastive activation addition (CAA, Rimsky et al., ACL 2024)
        shuffled pairs       the same estimator on wrong pairs
        source to itself     the same estimator from X to X: what regularisation alone does
        minimum norm, added  the paper's own map in its own form, h + alpha W h

    Args:
        X: ``{site: [n, d]}`` source states.
        Y: ``{site: [n, d]}`` target states.
        estimator: of the maps that are compared with these.
        lam: its ridge parameter.
        seed: of the wrong pairs.
        metadata: recorded in each.

    Returns:
        Name -> alignment, with the names of :data:`CONTROLS`.
    """
    solver = get_estimator(estimator)
    # The estimator's lam is given only to estimators that take one.
    own = lam if solver.uses_lam else None
    about = metadata or AlignmentMetadata()

    def fitted(name: str, target: Mapping[int, Tensor], form: str | None = None, **options: object) -> Alignment:
        return fit_states(X, target, form=form, metadata=replace(about, preset=name), progress=False, **options)  # type: ignore[arg-type]

    return {
        "constant mean": fitted("constant mean", Y, estimator="constant_mean"),
        "mean difference": fitted("mean difference", Y, estimator="mean_difference"),
        "shuffled pairs": fitted("shuffled pairs", Y, estimator=shuffled(solver, seed), lam=own),
        "source to itself": fitted("source to itself", X, estimator=solver, lam=own),
        "minimum norm, added": fitted("minimum norm, added", Y, form="add", estimator="min_norm"),
    }
