"""The metadata of an alignment and its JSON form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, cast, get_args

from incline_fast.arguments import number, whole
from incline_fast.models.block_parts import SiteKind

__all__ = ["AlignmentMetadata", "Form", "metadata_from_json", "metadata_to_json"]

Form = Literal["add", "interpolate"]
"""``h + alpha (W h + b)``, or ``(1 - alpha) h + alpha (W h + b)``."""

MAX_SITE = 10**7 - 1
"""The last site that a file may name; no model has as many layers."""


def library_version() -> str:
    """Version of the installed package, ``"unknown"`` in a source tree that was never installed."""
    try:
        return version("incline-fast")
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True)
class AlignmentMetadata:
    """Where the maps of an alignment come from and how they are meant to be used. Every field is optional.

    What a file could not hold is refused here, with the field's name; numbers of NumPy and torch become Python's.

    Attributes:
        model_id: hub name or folder name of the model whose states were fitted, empty if unknown.
        config_hash: hash of the config fields that determine its residual stream, empty if unknown.
        num_layers: its number L of blocks.
        hidden_size: its width d.
        source_language: name or code, as given to ``fit``.
        target_language: name or code, as given to ``fit``.
        template: the prompt around each sentence, None for bare sentences.
        pooling: ``"last"`` or ``"mean"``.
        site: what was fitted: ``"hidden"`` - the residual stream; ``"attention"``, ``"ffn"`` - what these return.
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

    Raises:
        ValueError: a field holds a value of another type, a number that is not finite, or text that is not Unicode.
    """

    model_id: str = ""
    config_hash: str = ""
    num_layers: int | None = None
    hidden_size: int | None = None
    source_language: str | None = None
    target_language: str | None = None
    template: str | None = None
    pooling: str | None = None
    site: SiteKind = "hidden"
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

    def __post_init__(self) -> None:
        for described in fields(self):
            object.__setattr__(self, described.name, _checked(described.name, getattr(self, described.name)))


def metadata_to_json(metadata: AlignmentMetadata) -> dict[str, Any]:
    """Plain values; the keys of per-site fields become strings, as JSON requires.

    Without metrics the field is left out, so that versions that do not know it read the file.
    """
    # Checked once more: the dictionaries of a frozen object can still be changed.
    return {
        name: {str(layer): item for layer, item in value.items()} if isinstance(value, dict) else value
        for name, value in asdict(replace(metadata)).items()
        if name != "metrics" or value
    }


def metadata_from_json(value: object) -> AlignmentMetadata:
    """The inverse of :func:`metadata_to_json`; every value is checked.

    Raises:
        ValueError: a field is unknown or holds a value of another type; the message names it.
    """
    if not isinstance(value, dict):
        raise ValueError(f"metadata is a {type(value).__name__}; expected an object")
    if value.get("site") == "norm_input":  # what files of earlier versions call the residual stream
        value = {**value, "site": "hidden"}
    unknown = sorted(set(value) - {f.name for f in fields(AlignmentMetadata)})
    if unknown:
        raise ValueError(f"metadata has unknown fields {unknown}")
    return AlignmentMetadata(**{name: _with_sites(name, item) for name, item in value.items()})


def _with_sites(name: str, value: object) -> Any:
    """JSON's keys as site numbers, in canonical spelling only (7, not 07), so that no two keys name one site."""
    if name not in _PER_SITE or not isinstance(value, dict):
        return value
    odd = [key for key in value if not (key.isascii() and key.isdecimal() and len(key) < 8 and str(int(key)) == key)]
    if odd:
        raise ValueError(f"metadata.{name} has the site {odd[0]!r}; expected whole numbers from 0")
    return {int(key): item for key, item in value.items()}


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}, a {type(value).__name__}; expected text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} is {value!r}, which is not valid Unicode: {error.reason}") from error
    return str.__str__(value)  # NumPy text and text enumerations become a plain str


def _texts(name: str, value: object) -> list[str]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{name} is {value!r}; expected a list of texts")
    return [_text(name, item) for item in value]


Check = Callable[[str, Any], Any]
_PER_SITE: dict[str, Check] = {
    "lam": number,
    "lam_selection": _text,
    "solver": _text,
    "notes": _texts,
    "fit_error": number,
}


def _site_kind(name: str, value: object) -> SiteKind:
    if value not in get_args(SiteKind):
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(get_args(SiteKind))}")
    return cast(SiteKind, value)


_SCALAR: dict[str, Check] = {"num_layers": whole, "hidden_size": whole, "n": whole, "recommended_alpha": number}
_SCALAR["site"] = _site_kind
_REQUIRED = ("model_id", "config_hash", "site", "library_version")


def _metrics(name: str, value: Any) -> dict[str, str | float]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is {value!r}; expected numbers and texts by name")
    return {
        _text(f"a name in {name}", key): _text(f"{name}[{key!r}]", item)
        if isinstance(item, str)
        else number(f"{name}[{key!r}]", item, "a number or text")
        for key, item in value.items()
    }


def _checked(name: str, value: Any) -> Any:
    """The value of a field, as JSON can hold it.

    Raises:
        ValueError: it cannot; the message names the field.
    """
    full = f"metadata.{name}"
    try:
        if name == "metrics":
            return _metrics(full, value)
        if name not in _PER_SITE:
            return None if value is None and name not in _REQUIRED else _SCALAR.get(name, _text)(full, value)
        if not isinstance(value, Mapping):
            raise TypeError(f"{full} is {value!r}; expected one value per site")
        sites = [whole(f"a site of {full}", site) for site in value]
        odd = [site for site in sites if not 0 <= site <= MAX_SITE]
        if odd or len(set(sites)) < len(sites):
            raise ValueError(f"{full} has the sites {sites}; expected whole numbers from 0, each once")
        items = zip(sites, value.values(), strict=True)
        return {site: _PER_SITE[name](f"{full}[{site}]", item) for site, item in items}
    except TypeError as error:
        raise ValueError(str(error)) from error
