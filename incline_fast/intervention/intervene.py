"""Apply an alignment to a model: ``with intervene(model, alignment, alpha=0.4): model.generate(...)``.

At every selected site, at the selected tokens: ``h <- beta h + alpha (W h + b)`` with ``beta = 1`` (form ``add``, the
intervention of INCLINE, Wang et al., ACL 2025, arXiv 2410.12462, section 3.2) or ``beta = 1 - alpha`` (form
``interpolate``). The edit happens inside the norm that reads the state, so it costs no second pass and no hook.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, cast, get_args

from torch import Tensor, nn

from incline_fast.alignment.alignment import Alignment
from incline_fast.intervention.clean import clean_forward
from incline_fast.intervention.entrances import Calls, Entrance, entrances
from incline_fast.intervention.forward_pass import Control
from incline_fast.intervention.mixture import Mixture, RowSettings, SiteStack
from incline_fast.intervention.positions import Positions
from incline_fast.intervention.site_edits import Shared, SiteEdit, backend_for
from incline_fast.intervention.strength import Alpha, row_alpha, row_alphas, site_alpha
from incline_fast.intervention.taps import InterventionError, Places, Taps
from incline_fast.intervention.watch import NonFiniteStateError, Watch
from incline_fast.maps import AffineMap
from incline_fast.models.active import ACTIVE
from incline_fast.models.architectures import Site, describe
from incline_fast.models.block_parts import SiteKind
from incline_fast.models.identity import identity_of
from incline_fast.ops import explain

__all__ = ["Intervention", "InterventionError", "Mode", "NonFiniteStateError", "intervene"]

Mode = Literal["online", "clean"]

_ENTERING = threading.Lock()


def intervene(
    model: nn.Module,
    alignment: Alignment | Mapping[str, Alignment],
    *,
    alpha: Alpha | Mapping[str, float],
    languages: Sequence[str | None] | None = None,
    positions: Positions = "last",
    mode: Mode = "online",
    layers: Sequence[int] | None = None,
    site: SiteKind | None = None,
    check_finite: bool = False,
) -> Intervention:
    """Edit a model's residual stream inside a ``with`` block; the model is exactly as before afterwards.

    Args:
        model: a transformers causal LM or its backbone, compiled or not.
        alignment: the maps; checked against the model.
        languages: the language of each row of the batch, None for a row that keeps its bits; needed with several
            alignments, ``{language: alignment}`` or a bundle. May be assigned anew between calls:
            ``it.languages = [...]``. An alignment may be missing sites that another has.
        alpha: strength. One number; one per language ``{language: alpha}``; one per site ``{site: alpha}``, which also
            selects the sites (of one alignment); or one per row of the batch, a tensor ``[B]`` (beams and several
            returned sequences repeat it), which may also be the value of a site: ``{9: 0.3, 12: [0.0, 0.5]}``. Where
            alpha is 0 nothing is edited and the model's bits are its own.
        positions: ``"last"`` - the last token of each prompt (the paper's choice); ``"generated"`` - also every token
            that is decoded; ``"all"`` - every token. Padding is never edited, nor is BOS at the start of a text given
            as ``input_ids``.
        mode: ``"online"`` - one pass; a site's edit is seen by the sites after it. ``"clean"`` - every edited value is
            computed from the unedited run and set, for one more decode-shaped step per prompt.
        layers: sites to edit (0: embedding output, l: output of block l); None: all that the alignment has.
        site: what is edited: ``"hidden"`` - the residual stream; ``"attention"``, ``"ffn"`` - what these return in
            block l; None: what the alignment was fitted for.
        check_finite: measure every edited state and raise :class:`NonFiniteStateError` after a forward pass in which
            one is not finite; fills ``max_abs`` and ``growth``.

    ``model.generate_batch`` edits each of its requests as ``generate`` edits its prompt alone; settings per row are per
    request. It shares no prefixes between requests, and what it raises is raised here instead of logged.

    Outside ``generate``, a forward pass of one token after a non-empty cache is a decode step, any other is a prompt;
    :meth:`Intervention.expect_prompt` says otherwise. Edits are in place and have no gradient. A compiled model is
    compiled anew for every intervention; to run many strengths, give one per row.

    Raises:
        ValueError, TypeError: an argument that is not allowed.
        AlignmentError: the alignment was made for another model.
        UnsupportedModelError: the architecture is not known.
    """
    return Intervention(model, alignment, alpha, positions, mode, layers, check_finite, site, languages)


class Intervention:
    """What :func:`intervene` returns; edits the model between ``__enter__`` and ``__exit__``.

    Attributes:
        model: as given.
        alpha: selected site -> strength; None where every row of the batch has its own.
        max_abs: site -> largest magnitude written so far, under ``check_finite``.
        growth: site -> largest ``|r'| / |r|`` of an edited state so far, under ``check_finite``.
    """

    def __init__(
        self,
        model: nn.Module,
        alignment: Alignment | Mapping[str, Alignment],
        alpha: Alpha | Mapping[str, float],
        positions: Positions,
        mode: Mode,
        layers: Sequence[int] | None,
        check_finite: bool,
        site: SiteKind | None = None,
        languages: Sequence[str | None] | None = None,
    ) -> None:
        for name, value, allowed in (("positions", positions, get_args(Positions)), ("mode", mode, get_args(Mode))):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(repr, allowed))}")
        if mode == "clean" and positions != "last":
            raise ValueError(f"positions={positions!r} with mode='clean'; the unedited run is known at 'last' only")
        self.model = model
        self._positions: Positions = positions
        self._mode: Mode = mode
        self._mixture: Mixture | None = None
        self._layers = layers
        if isinstance(alignment, Alignment):
            if languages is not None:
                raise ValueError("languages is given with one alignment; expected {language: alignment} with it")
            one = alignment
            self.alpha = site_alpha(cast(Alpha, alpha), alignment, layers)
            strengths = row_alphas(cast(Alpha, alpha), self.layers)
            self._forms: str = alignment.form
            self._rows = None if strengths is None else RowSettings.of_one_alignment(strengths, alignment.form)
            check = [alignment]
        else:
            if languages is None:
                raise ValueError("alignment is several alignments; expected languages, one name or None per row")
            self._mixture = Mixture(alignment, alpha, None if isinstance(alpha, Mapping) else row_alpha(alpha))
            self._rows = self._mixture.rows(languages)
            read = self._mixture.read()
            if not read:
                raise ValueError("languages names no language; expected at least one")
            one = next(iter(read.values()))
            self.alpha = dict.fromkeys(self._mixed_sites())
            self._forms = "per language"
            check = list(read.values())
        self._languages = list(languages or ())
        self._alignment = one
        self._architecture = describe(model, site or one.metadata.site)
        identity = identity_of(self._architecture)
        for each in check:
            each.check_identity(identity)
        # Weights on the meta device that no hook loads are refused here, not in the first pass.
        self._device = self._architecture.sites[0].device
        self._watch = Watch() if check_finite else None
        self._calls: Calls | None = None
        self._edits: list[SiteEdit] = []
        self._taps: dict[nn.Module, Taps] = {}
        self._entrances: list[Entrance] = []
        self._state: Literal["new", "active", "done"] = "new"
        self.max_abs: dict[int, float] = {} if self._watch is None else self._watch.max_abs
        self.growth: dict[int, float] = {} if self._watch is None else self._watch.growth

    @property
    def languages(self) -> list[str | None]:
        """The language of each row; may be assigned a new list between calls of the model."""
        return list(self._languages)

    @languages.setter
    def languages(self, languages: Sequence[str | None]) -> None:
        mixture = self._mixture
        if mixture is None:
            raise ValueError("this intervention has one alignment; languages belong to {language: alignment}")
        known = len(mixture.languages)
        try:
            rows = mixture.rows(languages)
            stacks = self._stacks_with(mixture.languages[known:])
        except BaseException:
            del mixture.languages[known:]  # a refused assignment leaves maps and rows as they were
            raise
        for edit, stack in zip(self._edits, stacks, strict=False):
            edit.take(stack)
        self._languages, self._rows = list(languages), rows
        if self._calls is not None:
            self._calls.rows = rows.each(lambda per_row: per_row.to(self._device))

    def _stacks_with(self, names: Sequence[str]) -> list[SiteStack]:
        """The stack of each edited site when languages have just been read; none where none has been."""
        mixture = self._mixture
        assert mixture is not None
        if not names:
            return []
        for name in names:
            mixture.read()[name].check(self.model)
        missing = [site for site in self._mixed_sites() if site not in self.alpha]
        if missing:
            raise ValueError(f"the sites {missing} have maps in these languages alone; name them when entering")
        return [mixture.stack(edit.index) for edit in self._edits]

    def _mixed_sites(self) -> list[int]:
        assert self._mixture is not None
        sites = self._mixture.sites()
        if self._layers is None:
            return sites
        unknown = [site for site in self._layers if site not in sites]
        if unknown:
            raise ValueError(f"layers {unknown} have no map in any of these alignments; they have {sites}")
        return sorted(self._layers)

    @property
    def layers(self) -> list[int]:
        """The sites that are edited: selected, with an alpha that is not 0."""
        return [site for site, value in self.alpha.items() if value != 0]

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """``model.generate(*args, **kwargs)``."""
        self._need_active("generate")
        generate: Callable[..., Any] = self.model.generate  # type: ignore[assignment]
        return generate(*args, **kwargs)

    def expect_prompt(self) -> None:
        """Say that the next forward pass ends a prompt, even if it is one token after a non-empty cache.

        Needed outside ``generate`` only: to score a last token over a shared prefix, once per alpha.
        """
        self._need_active("expect_prompt").expect_prompt()

    def describe(self) -> str:
        """Which sites are edited, how strongly, at which tokens, and by which backend."""
        device, note = self._device, self._architecture.note
        head = (
            f"{len(self.layers)} of {self._architecture.num_layers + 1} sites edited, form={self._forms!r}, "
            f"positions={self._positions!r}, mode={self._mode!r}\n"
            f"  sites found by the {self._architecture.found_by}{'; ' * bool(note)}{note}\n"
            f"  backend: {explain(backend_for(device), device=device)}"
        )
        lines = [
            f"  site {site.index}: {site.path} ({site.tap}), {self._map(site)}, "
            f"alpha={'per row' if self.alpha[site.index] is None else self.alpha[site.index]}"
            for site in self._sites()
        ]
        return "\n".join([head, *lines])

    def __enter__(self) -> Self:
        backbone = self._architecture.backbone
        if self._state != "new":
            raise InterventionError(f"this intervention is {self._state}; call intervene(...) again for another one")
        with _ENTERING:
            if backbone in ACTIVE:
                raise InterventionError(
                    "this model is being edited by another intervention; leave that one first. To apply several "
                    "alignments, merge their maps into one Alignment"
                )
            ACTIVE.add(backbone)
        self._state = "active"
        try:
            self._install()
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._calls is None:
            return
        changed: list[str] = []
        try:
            idle = self._calls.at_work.close(self._restore)
        except BaseException:  # interrupted while other threads were at work
            self._restore()
            raise
        if idle:
            changed = self._restore()
            message = (
                f"the model was changed during the intervention: {', '.join(changed)} no longer held what intervene "
                "had put there. The originals were put back; what replaced them is gone, and edits may have been "
                "skipped"
            )
        else:
            changed = ["at work"]
            message = (
                "the with block was left inside a forward pass or generate of its own model, in the same thread; the "
                "edits stay until that call returns"
            )
        if not changed:
            return
        if error is None:
            raise InterventionError(message)
        error.add_note(message)

    def _sites(self) -> list[Site]:
        return [self._architecture.sites[index] for index in self.layers]

    def _need_active(self, name: str) -> Calls:
        if self._calls is None:
            raise InterventionError(f"{name} was called outside the with block of this intervention")
        return self._calls

    def _install(self) -> None:
        architecture, watch = self._architecture, self._watch
        calls = Calls(
            architecture,
            Control(),
            self._positions,
            rows=None if self._rows is None else self._rows.each(lambda per_row: per_row.to(self._device)),
            clone_embeddings=0 in self.layers,
            clean=self._mode == "clean",
            after=None if watch is None else lambda running: watch.collect(running, self._edits, self.alpha),
        )
        self._calls = calls
        sites = self._sites()
        strengths = [self._strengths(site.index) for site in sites]
        shared = Shared(strengths)
        by_site = self._rows is not None and len(self._rows.alpha) > 1
        for position, site in enumerate(sites):
            map, bias, stack = self._map_of(site.index)
            kind = position if by_site else 0
            edit = SiteEdit(site, map, bias, strengths[position], position, shared, watch is not None, kind)
            if stack is not None:
                edit.take(stack)
            self._edits.append(edit)
            # A block that was compiled on its own is called through its wrapper.
            module: Any = site.owner._modules[site.name]
            if module not in self._taps:
                self._taps[module] = Taps(module, calls.control)
            self._taps[module].add(edit)
        for number, module in enumerate(entrances(self.model, architecture)):
            entrance = Entrance(module, calls, number)
            self._entrances.append(entrance)
            if module is architecture.backbone and self._mode == "clean":
                entrance.clean = clean_forward(entrance)

    def _strengths(self, site: int) -> tuple[float, float]:
        """Alpha and beta of a site, 1 where each row has its own."""
        value = self.alpha[site]
        if value is None:
            return 1.0, 1.0
        return value, 1.0 - value if self._alignment.form == "interpolate" else 1.0

    def _map_of(self, site: int) -> tuple[AffineMap, Tensor | None, SiteStack | None]:
        if self._mixture is None:
            return self._alignment.maps[site], self._alignment.bias.get(site), None
        stack = self._mixture.stack(site)
        return stack.map, stack.bias, stack

    def _map(self, site: Site) -> str:
        if self._mixture is None:
            return str(self._alignment.maps[site.index])
        map = self._mixture.stack(site.index).map
        size = sum(part.numel() * part.element_size() for part in (map.down, map.up) if part is not None)
        return f"{map}, {size} bytes for {', '.join(self._mixture.languages)}"

    def _restore(self) -> list[str]:
        """Take everything out again; returns what was no longer as installed."""
        changed = [type(entrance.module).__name__ for entrance in self._entrances if not entrance.intact()]
        places = Places(self._architecture.model)
        for taps in self._taps.values():
            for site in taps.sites():
                if not taps.intact(places.at(site.path)):
                    changed.append(site.path)
                    site.owner._modules[site.name] = taps.module
        # The sites first: without an entrance, a pass that another thread has just begun would not be known to them.
        for taps in reversed(self._taps.values()):
            taps.remove()
        for entrance in reversed(self._entrances):
            entrance.remove()
        self._entrances, self._edits, self._taps, self._calls = [], [], {}, None
        ACTIVE.discard(self._architecture.backbone)
        self._state = "done"
        return changed
