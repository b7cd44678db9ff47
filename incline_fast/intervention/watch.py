"""What ``check_finite`` measures: magnitude and growth of every edited state, refused where one is not finite."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence

from incline_fast.intervention.forward_pass import ForwardPass
from incline_fast.intervention.site_edits import SiteEdit

__all__ = ["NonFiniteStateError", "Watch"]


class NonFiniteStateError(ArithmeticError):
    """An edited state is infinite or NaN; the message names site, row and alpha."""


class Watch:
    """The measurements of one intervention; threads may add to them at the same time.

    Attributes:
        max_abs: site -> largest magnitude written so far.
        growth: site -> largest ``|r'| / |r|`` of an edited state so far.
    """

    def __init__(self) -> None:
        self.max_abs: dict[int, float] = {}
        self.growth: dict[int, float] = {}
        self._measuring = threading.Lock()

    def collect(self, running: ForwardPass, edits: Sequence[SiteEdit], alpha: Mapping[int, float | None]) -> None:
        """Add what the sites measured in one pass.

        Args:
            running: the pass, which has run.
            edits: of all sites.
            alpha: site -> strength; None where every row has its own.

        Raises:
            NonFiniteStateError: an edited state is not finite.
            RuntimeError: a site did not run.
        """
        rows = running.rows
        assert rows is not None
        for edit in edits:
            index = edit.index
            if index not in running.measures:
                raise RuntimeError(f"{edit.site.path} did not run in this forward pass, so its edit was skipped")
            peak, growth = running.measures[index]
            with self._measuring:
                for measured, worst in ((peak, self.max_abs), (growth, self.growth)):
                    value = float(measured.max())  # NaN if one is
                    worst[index] = max(worst.get(index, 0.0), math.inf if math.isnan(value) else value)
            bad = (~peak.isfinite()).nonzero()
            if bad.numel():
                n = int(bad[0])
                own, _ = running.strengths(edit.kind)
                strength = alpha[index] if own is None else float(own[n])
                raise NonFiniteStateError(
                    f"the edited state of site {index} ({edit.site.path}) is not finite in row {rows.batch_row(n)} at "
                    f"alpha={strength}. Edits at many sites feed each other: lower alpha, edit fewer layers, or use "
                    f"form='interpolate'. Largest magnitude per site so far: {_rounded(self.max_abs)}"
                )


def _rounded(values: Mapping[int, float]) -> str:
    return ", ".join(f"{site}: {value:.3g}" for site, value in values.items())
