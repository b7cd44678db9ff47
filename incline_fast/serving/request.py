"""What one request asks for: read from its ``extra_args`` where it is admitted, carried in them through the engine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from incline_fast.serving.catalog import Catalog
from incline_fast.serving.errors import RequestError

__all__ = ["WIRE", "Edit", "edit_of", "resolve"]

WIRE = "incline_fast"
"""Key of ``extra_args`` under which an admitted request carries its edit; clients may not set it."""

Positions = Literal["last", "generated", "all"]
_KEYS = ("incline", "incline_alpha", "incline_positions")


@dataclass(frozen=True)
class Edit:
    """The edit of one request, with the name of its map resolved.

    Attributes:
        content: hash of the alignment's file; a name may come to mean another file while the request runs.
        alpha, beta: ``h <- beta h + alpha (W h + b)``.
        positions: "last": the last prompt token; "generated": it and every token after it; "all": every token.
        first: the first position that may be edited; 1 where the prompt begins with BOS.
    """

    content: str
    alpha: float
    beta: float
    positions: Positions
    first: int

    def begin(self, prompt_length: int) -> int:
        """The first edited position of a prompt."""
        return self.first if self.positions == "all" else max(prompt_length - 1, self.first)

    def end(self, prompt_length: int) -> int | None:
        """One past the last edited position, None: no end."""
        return prompt_length if self.positions == "last" else None

    def salt(self) -> str:
        """Text that differs between any two edits: cached states of different edits must not be shared."""
        return f"{self.content}:{self.alpha!r}:{self.beta!r}:{self.positions}"

    def wire(self) -> dict[str, Any]:
        """Plain values, for the way to the engine."""
        return asdict(self)


def edit_of(extra_args: Mapping[str, Any] | None) -> Edit | None:
    """The edit that an admitted request carries."""
    wire = None if extra_args is None else extra_args.get(WIRE)
    return None if wire is None else Edit(**wire)


def resolve(
    extra_args: Mapping[str, Any] | None,
    catalog: Catalog | None,
    prompt: Sequence[int] | None,
    bos_token_ids: Sequence[int],
    max_alpha: float,
) -> Edit | None:
    """The edit that a request asks for, None if it asks for none or for alpha = 0.

    Args:
        extra_args: of the request's sampling parameters.
        catalog: the maps that are served; None where the plugin was not configured.
        prompt: the prompt's token ids, None for embeddings.
        bos_token_ids: tokens that mark the beginning of a text and are never edited there.
        max_alpha: largest allowed magnitude.

    Raises:
        RequestError: unknown map, key or positions, or an alpha that is not allowed.
    """
    asked = {key: value for key, value in (extra_args or {}).items() if str(key).startswith("incline")}
    unknown = sorted(set(asked) - set(_KEYS))
    if unknown:
        raise RequestError(f"{unknown[0]} is not known; allowed: {', '.join(_KEYS)}", unknown[0], asked[unknown[0]])
    if not asked:
        return None
    name = asked.get("incline")
    if name is None:
        raise RequestError(f"{min(asked)} is given without incline, which names the map", "incline", None)
    if catalog is None:
        raise RequestError(f"incline is {name!r}, but this engine was started without maps", "incline", name)
    entry = catalog.get(name)
    positions = asked.get("incline_positions", "last")
    if positions not in get_args(Positions):
        allowed = ", ".join(get_args(Positions))
        raise RequestError(f"incline_positions is {positions!r}; allowed: {allowed}", "incline_positions", positions)
    alpha = _alpha(asked.get("incline_alpha"), name, entry.recommended_alpha, max_alpha)
    if alpha == 0:
        return None
    beta = 1.0 - alpha if entry.form == "interpolate" else 1.0
    first = 1 if prompt and prompt[0] in bos_token_ids else 0
    edit = Edit(entry.content, alpha, beta, positions, first)
    if positions == "last" and prompt is not None and len(prompt) <= first:
        return None  # the prompt is a BOS token alone
    return edit


def _alpha(given: object, name: str, recommended: float | None, largest: float) -> float:
    if given is None:
        if recommended is None:
            raise RequestError(f"incline_alpha is missing, and {name!r} recommends none", "incline_alpha", None)
        given = recommended
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise RequestError(f"incline_alpha is {given!r}; expected a finite number", "incline_alpha", given)
    if abs(given) > largest:
        raise RequestError(
            f"incline_alpha is {given}; allowed: -{largest:g} to {largest:g}, which the server's max_alpha says",
            "incline_alpha",
            given,
        )
    return float(given)
