"""Which alignments can be scored, and a warning about those that may do harm."""

from __future__ import annotations

import warnings

from incline_fast.alignment.alignment import Alignment

__all__ = ["check_late_entry", "warn_of_template"]


def check_late_entry(alignment: Alignment) -> None:
    """Refuse maps of attention or the FFN: a pass that begins at site l never runs block l, whose parts they edit.

    Raises:
        ValueError: names what the alignment was fitted for.
    """
    if alignment.metadata.site != "hidden":
        raise ValueError(
            f"the alignment was fitted with site={alignment.metadata.site!r}; label scores enter the model behind "
            "block l and would never run what it edits there. Fit with site='hidden', or measure with sweep or "
            "score_continuations, which run whole passes"
        )


def warn_of_template(alignment: Alignment, template: str) -> None:
    """Warn once where maps were learned in another prompt than the one that is scored."""
    fitted = alignment.metadata.template
    if fitted is not None and fitted != template:
        warnings.warn(
            f"the maps were fitted in the prompt {fitted!r} and are applied in {template!r}; maps from another prompt "
            "or from other text may do harm: fit on at least 200 parallel sentences like the inputs, in this prompt",
            stacklevel=4,
        )
