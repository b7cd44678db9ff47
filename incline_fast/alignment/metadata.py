"""The metadata of an alignment and its JSON form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

__all__ = ["AlignmentMetadata", "Form", "metadata_from_json", "metadata_to_json"]

Form = Literal["add", "interpolate"]
"""``h + alpha (W h + b)``, or ``(1 - alpha) h + alpha (W h + b)``."""


def library_version() -> str:
    """Version of the installed package, ``"unknown"`` in a source tree that was never installed."""
    try:
        return version("incline-fast")
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True)
class AlignmentMetadata:
    """Where the maps of an alignment come from and how they are meant to be used. Every field is optional.

    Attributes:
        model_id: hub name or folder name of the model whose states were fitted, empty if unknown.
        config_hash: hash of the config fields that determine its residual stream, empty if unknown.
        num_layers: its number L of blocks.
        hidden_size: its width d.
        source_language: name or code, as given to ``fit``.
        target_language: name or code, as given to ``fit``.
        template: the prompt around each sentence, None for bare sentences.
        pooling: ``"last"`` or ``"mean"``.
        site: where the states were taken; ``"norm_input"`` is the residual stream that enters a norm.
        estimator: name of the estimator.
        n: number of sentence pairs that were fitted.
        recommended_alpha: strength chosen on development data, None if none was chosen.
        preset: name of the preset, None when fitted from states.
        library_version: version of incline_fast that made the alignment.
        lam: relative ridge parameter per site.
        lam_selection: ``"loo"`` for the sites where it was chosen by leave-one-out; absent where it was given.
        solver: per site, how the fit was solved (``Fitted.form_used``).
        notes: per site, what the solver had to report (a breakdown, constant features).
        fit_error: per site, the held-out error defined by ``incline_fast.fit``; empty without a hold-out.
        metrics: what ``tune`` measured and on what: name -> number or text; empty where nothing was tuned.
    """

    model_id: str = ""
    config_hash: str = ""
    num_layers: int | None = None
    hidden_size: int | None = None
    source_language: str | None = None
    target_language: str | None = None
    template: str | None = None
    pooling: str | None = None
    site: str = "norm_input"
    estimator: str | None = None
    n: int | None = None
    recommended_alpha: float | None = None
    preset: str | None = None
    library_version: str = field(default_factory=library_version)
    lam: dict[int, float] = field(default_factory=dict)
    lam_selection: dict[int, str] = field(default_factory=dict)
    solver: dict[int, str] = field(default_factory=dict)
    notes: dict[int, list[str]] = field(default_factory=dict)
    fit_error: dict[int, float] = field(default_factory=dict)
    metrics: dict[str, str | float] = field(default_factory=dict)


def metadata_to_json(metadata: AlignmentMetadata) -> dict[str, Any]:
    """Plain values; the keys of per-site fields become strings, as JSON wants them.

    Without metrics the field is left out, so that versions that do not know it read the file.
    """
    return {
        name: {str(layer): item for layer, item in value.items()} if isinstance(value, dict) else value
        for name, value in asdict(metadata).items()
        if name != "metrics" or value
    }


def metadata_from_json(value: object) -> AlignmentMetadata:
    """The inverse of :func:`metadata_to_json`, which trusts nothing.

    Raises:
        ValueError: a field is unknown or holds a value of another type; the message names it.
    """
    if not isinstance(value, dict):
        raise ValueError(f"metadata is a {type(value).__name__}; expected an object")
    unknown = sorted(set(value) - {f.name for f in fields(AlignmentMetadata)})
    if unknown:
        raise ValueError(f"metadata has unknown fields {unknown}")
    return AlignmentMetadata(**{name: _parse(name, item) for name, item in value.items()})


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    # NaN fails the comparison; json reads it although JSON does not know it.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _is_str(value: object) -> bool:
    return isinstance(value, str)


def _is_str_list(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_str, value))


_PER_SITE: dict[str, Callable[[object], bool]] = {
    "lam": _is_number,
    "lam_selection": _is_str,
    "solver": _is_str,
    "notes": _is_str_list,
    "fit_error": _is_number,
}
_SCALAR: dict[str, Callable[[object], bool]] = {"num_layers": _is_int, "hidden_size": _is_int, "n": _is_int}
_SCALAR["recommended_alpha"] = _is_number
_REQUIRED = ("model_id", "config_hash", "site", "library_version")


def _parse(name: str, value: object) -> Any:
    if name == "metrics":
        if not isinstance(value, dict) or not all(
            _is_str(k) and (_is_str(v) or _is_number(v)) for k, v in value.items()
        ):
            raise ValueError(f"metadata.metrics is {value!r}; expected numbers and texts by name")
        return dict(value)
    if name in _PER_SITE:
        allowed = _PER_SITE[name]
        if not isinstance(value, dict) or not all(k.isdecimal() and allowed(v) for k, v in value.items()):
            raise ValueError(f"metadata.{name} is {value!r}; expected one value per site")
        return {int(k): v for k, v in value.items()}
    allowed = _SCALAR.get(name, _is_str)
    if not (allowed(value) or (value is None and name not in _REQUIRED)):
        raise ValueError(f"metadata.{name} is {value!r}, a {type(value).__name__}, which is not allowed")
    return value
