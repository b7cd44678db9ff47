"""Find a decoder's sites by running it on a few tokens, and prove them by editing.

The first pass adds a random vector to every state with hooks on the blocks and watches which norms read the edited
states: the first module inside a block (after the last block: anywhere) that is given the state itself, the same
memory, and computes RMSNorm or LayerNorm of what it is given. The second pass adds the same vectors inside these norms,
in place, as an intervention does. Both passes do the same arithmetic, so their results agree to rounding if every edit
reached the residual stream before anything else had read it. Where they do not agree, the norms are not used: the
states are then edited by hooks on the blocks.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from incline_fast.models.edited_pass import ROWS, TOKENS, Blocks, LastEdit, install, same_memory
from incline_fast.models.norms import NormFormula, norm_formula
from incline_fast.models.sites import (
    Tap,
    UnsupportedModelError,
    block_output,
    evaluated,
    text_config,
    unwrap,
)

__all__ = ["Found", "Where", "probe", "probe_inputs", "undisturbed"]


@dataclass(frozen=True)
class Where:
    """One site without references to modules, so that it can be kept for a model without keeping the model alive."""

    tap: Tap
    path: str
    norm: NormFormula | None = None


@dataclass(frozen=True)
class Found:
    """What the probe found.

    Attributes:
        backbone: path of the module that turns token ids into hidden states.
        blocks: path of the list of blocks.
        sites: ``L + 1`` sites.
        hidden_size: d.
        stream_axis: see :class:`~incline_fast.models.sites.Site`.
        note: why norms are not used although the model has some; otherwise empty.
    """

    backbone: str
    blocks: str
    sites: tuple[Where, ...]
    hidden_size: int
    stream_axis: int | None = None
    note: str = ""


def probe(model: nn.Module) -> Found:
    """Find the sites of a decoder with two forward passes of 2 x 5 tokens; kept per model.

    Raises:
        UnsupportedModelError: the model has no list of blocks through which states ``[B, T, d]`` (or parallel streams
            of them) pass one after the other, it cannot be run on token ids alone, or it is not causal.
    """
    kept = _KEPT.get(model)
    if kept is not None and kept.still_holds(model):
        return kept.found
    with undisturbed(model):
        found = _Probe(model).find()
    _KEPT[model] = _Kept(found, [weakref.ref(_module(model, site.path)) for site in found.sites])
    return found


@dataclass(frozen=True)
class _Kept:
    found: Found
    modules: list[weakref.ref[nn.Module]]

    def still_holds(self, model: nn.Module) -> bool:
        try:
            return all(
                _module(model, site.path) is module()
                for site, module in zip(self.found.sites, self.modules, strict=True)
            )
        except AttributeError:
            return False


_KEPT: weakref.WeakKeyDictionary[nn.Module, _Kept] = weakref.WeakKeyDictionary()


def _module(model: nn.Module, path: str) -> nn.Module:
    return unwrap(model.get_submodule(path))


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation, no gradients, and compiled parts run as written, so that they see the probe's hooks."""
    with evaluated(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        yield


class _Probe:
    """The passes over one model."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names = {unwrap(module): _plain(name) for name, module in model.named_modules()}
        self._config = text_config(model)
        self._inputs = probe_inputs(model)
        self._calls: dict[nn.Module, int] = {}

    def find(self) -> Found:
        """Find the sites; see :func:`probe`."""
        lists = self._candidates()
        expected = self._first_pass(lists)
        blocks = self._the_blocks(lists)
        if not bool(expected.isfinite().all()):
            raise self._refusal("its output is not finite on a few tokens")
        self._check_causal(expected)
        hooks = self._hook_sites(blocks)
        sites = [self._norm_site(blocks, site) or hooks[site] for site in range(len(hooks))]
        if not self._all_joined(blocks, sites):
            self._check_consumed(blocks, hooks, expected)
        sites, note = self._proven(blocks, sites, hooks, expected)
        like = cast(Tensor, blocks.like)
        return Found(self._backbone(blocks), blocks.path, tuple(sites), int(like.shape[-1]), blocks.stream_axis, note)

    def _refusal(self, reason: str) -> UnsupportedModelError:
        kind = getattr(self._config, "model_type", "unknown")
        return UnsupportedModelError(f"{type(self._model).__name__} (model_type {kind!r}) cannot be edited: {reason}")

    def _candidates(self) -> list[Blocks]:
        """Outermost lists of modules; those with as many members as the configuration has layers, if there are any."""
        lists: list[Blocks] = []
        for name, module in self._model.named_modules():
            path = _plain(name)
            inside = any(path.startswith(f"{found.path}.") for found in lists)
            if isinstance(module, nn.ModuleList) and len(module) and not inside:
                lists.append(Blocks(path, [unwrap(member) for member in module]))
        layers = getattr(self._config, "num_hidden_layers", None)
        return [found for found in lists if len(found.modules) == layers] or lists

    def _first_pass(self, lists: Sequence[Blocks]) -> Tensor:
        """The output with every state edited by hooks on the blocks; what was seen is recorded in ``lists``."""
        with ExitStack() as stack:
            last = LastEdit()
            for blocks in lists:
                blocks.runs = [0] * len(blocks.modules)
                for index, block in enumerate(blocks.modules):
                    stack.callback(
                        block.register_forward_pre_hook(last.entering(blocks, index), with_kwargs=True).remove
                    )
                    stack.callback(block.register_forward_hook(last.leaving(blocks, index)).remove)
            for module in self._names:
                if next(module.children(), None) is None:
                    stack.callback(module.register_forward_hook(self._reader(last), with_kwargs=True).remove)
            return self._run()

    def _reader(self, last: LastEdit) -> Callable[..., None]:
        """A hook on a module that counts its calls and records whether it is given the edited state itself."""

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._calls[module] = self._calls.get(module, 0) + 1
            given = (
                args[0] if len(args) == 1 and not kwargs else kwargs.get("hidden_states") if len(kwargs) == 1 else None
            )
            if last.blocks is not None and last.state is not None and same_memory(given, last.state):
                last.blocks.readers.setdefault(last.site, []).append(module)

        return hook

    def _run(self) -> Tensor:
        try:
            output = self._model(**self._inputs)
        except Exception as error:
            raise self._refusal(f"it did not run on {ROWS} x {TOKENS} token ids alone ({error})") from error
        values = output.values() if isinstance(output, dict) else output if isinstance(output, tuple) else [output]
        for value in values:
            if isinstance(value, Tensor) and value.is_floating_point() and value.shape[:2] == (ROWS, TOKENS):
                return value
        raise self._refusal("it returns no tensor with one row per token")

    def _the_blocks(self, lists: Sequence[Blocks]) -> Blocks:
        """The one list whose members each ran once in the first pass and took and returned states."""
        ran = [blocks for blocks in lists if any(blocks.runs)]
        good = [blocks for blocks in ran if not blocks.trouble and set(blocks.runs) == {1}]
        # Lists of other parts (of a gate, of embeddings per layer) are shorter or pass on no states.
        good = [blocks for blocks in good if len(blocks.modules) == max(len(b.modules) for b in good)]
        if len(good) == 1:
            return good[0]
        if len(good) > 1:
            raise self._refusal(f"{' and '.join(b.path for b in good)} could each be its list of blocks")
        if not ran:
            raise self._refusal("it has no list of modules that run on token ids; nothing can be taken for its blocks")
        worst = max(ran, key=lambda blocks: len(blocks.modules))
        times = sorted(set(worst.runs))
        raise self._refusal(
            worst.trouble or f"the members of {worst.path} ran {times} times in one pass, not once each"
        )

    def _check_causal(self, output: Tensor) -> None:
        """The two rows differ in their last token only: a decoder's output is the same before it."""
        earlier = output[:, :-1].float()
        tolerance = 1e-3 if output.dtype == torch.float32 else 5e-2
        if float((earlier[0] - earlier[1]).abs().max()) > tolerance * float(earlier.abs().max()):
            raise self._refusal(
                "a later token changes what it computes for earlier ones: it is not causal (is_decoder=True?)"
            )

    def _hook_sites(self, blocks: Blocks) -> list[Where]:
        paths = [f"{blocks.path}.{index}" for index in range(len(blocks.modules))]
        return [Where("block_input", paths[0]), *(Where("block_output", path) for path in paths)]

    def _norm_site(self, blocks: Blocks, site: int) -> Where | None:
        """The first norm that is given the state itself; None if there is none that runs once and has no hooks."""
        if blocks.stream_axis is not None or (site < len(blocks.modules) and not blocks.joined.get(site)):
            return None
        for module in blocks.readers.get(site, []):
            hooked = module._forward_hooks or module._forward_pre_hooks
            if hooked or self._calls[module] != 1 or not self._names[module]:
                continue
            formula = norm_formula(module, cast(Tensor, blocks.like))
            if formula is not None:
                return Where("norm", self._names[module], formula)
        return None

    def _all_joined(self, blocks: Blocks, sites: Sequence[Where]) -> bool:
        """Whether every edited state is known to be read: the last one by a norm, the others by the next block."""
        return all(blocks.joined.get(site) for site in range(len(blocks.modules))) and sites[-1].tap == "norm"

    def _check_consumed(self, blocks: Blocks, hooks: Sequence[Where], expected: Tensor) -> None:
        """Refuse blocks whose edited states change nothing: the output without these edits must not be ``expected``."""
        last = len(hooks) - 1
        doubtful = {site for site in range(last) if not blocks.joined.get(site)} | {last}
        without = self._edited({site: where for site, where in enumerate(hooks) if site not in doubtful}, blocks)[0]
        if float((without - expected).abs().max()) <= 1e-3 * float(expected.abs().max()):
            raise self._refusal(f"what the blocks of {blocks.path} return is not what the model goes on with")

    def _proven(
        self, blocks: Blocks, sites: list[Where], hooks: Sequence[Where], expected: Tensor
    ) -> tuple[list[Where], str]:
        """``sites`` if edits there give the output ``expected``; otherwise ``hooks`` instead of some norms, and why."""
        rejected: list[int] = []
        while any(where.tap == "norm" for where in sites):
            actual, wrong = self._edited(dict(enumerate(sites)), blocks)
            error = float((actual.float() - expected.float()).abs().max())
            if error <= 16 * torch.finfo(expected.dtype).eps * float(expected.float().abs().max()):
                break
            # The first block whose result differs read its state before the norm did, or after a copy was taken.
            norms = [site for site, where in enumerate(sites) if where.tap == "norm"]
            before = [site for site in norms if wrong is not None and site <= wrong]
            guilty = before[-1:] if before and len(rejected) < 3 else norms
            rejected += guilty
            sites = [hooks[site] if site in guilty else where for site, where in enumerate(sites)]
        if not rejected:
            return sites, ""
        which = ", ".join(map(str, sorted(rejected)))
        return sites, f"edits in the norms of the sites {which} gave other results than hooks on the blocks"

    def _edited(self, sites: dict[int, Where], blocks: Blocks) -> tuple[Tensor, int | None]:
        """The output with the states of ``sites`` edited there, and the first block to return other than at first."""
        wrong: list[int] = []

        def compare(index: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                before = blocks.outputs[index]
                difference = (block_output(output).float() - before.float()).abs().max()
                if float(difference) > 16 * torch.finfo(before.dtype).eps * float(before.float().abs().max()):
                    wrong.append(index)

            return hook

        with ExitStack() as stack:
            for index, block in enumerate(blocks.modules):
                stack.callback(block.register_forward_hook(compare(index)).remove)
            for site, where in sites.items():
                stack.callback(
                    install(_module(self._model, where.path), where.tap, partial(blocks.vector, site)).remove
                )
            return self._run(), min(wrong, default=None)

    def _backbone(self, blocks: Blocks) -> str:
        """The innermost module around the blocks whose forward takes token ids."""
        path = blocks.path
        while path:
            path = path.rpartition(".")[0]
            forward = type(_module(self._model, path)).forward
            if "input_ids" in inspect.signature(forward).parameters:
                return path
        return ""


def _plain(path: str) -> str:
    """A module's path without the wrappers of ``torch.compile``."""
    return ".".join(part for part in path.split(".") if part != "_orig_mod")


def probe_inputs(model: nn.Module) -> dict[str, Any]:
    """Two rows of ordinary tokens that differ in the last one."""
    embedding = cast(nn.Module, model.get_input_embeddings())  # type: ignore[operator]
    count = next(iter(embedding.parameters())).shape[0]
    special: set[int] = set()
    configs: tuple[Any, Any] = (model.config, text_config(model))
    for one in configs:
        for name, value in one.to_dict().items():
            if name.endswith(("token_id", "token_index", "token_ids")):
                special.update(v for v in (value if isinstance(value, list | tuple) else [value]) if type(v) is int)
    ordinary = [token for token in range(3, min(count, 64 + len(special))) if token not in special]
    ids = torch.tensor([ordinary[: TOKENS - 1]] * ROWS)
    ids = torch.cat([ids, torch.tensor([[ordinary[TOKENS]], [ordinary[TOKENS + 1]]])], dim=1)
    device = next((p.device for p in embedding.parameters() if not p.is_meta), torch.device("cpu"))
    return {"input_ids": ids.to(device)}
