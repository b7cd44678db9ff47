"""Hidden states of a transformers decoder: the residual stream at every norm's input, one pooled row per sentence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from incline_fast.arguments import whole, wholes
from incline_fast.distributed import rank_and_size, synchronize, total
from incline_fast.models.active import ACTIVE
from incline_fast.models.architectures import Architecture, describe
from incline_fast.models.block_parts import SiteKind
from incline_fast.models.identity import identify, weights_hash
from incline_fast.models.inputs import input_device, token_limits
from incline_fast.models.sites import evaluated
from incline_fast.models.wrappers import has_part_of_weights
from incline_fast.states.shards import Shards, StatesError, text_hash
from incline_fast.states.shared_prefix import SharedPrefix, common_prefix, key_value_cache, run_shared_prefix
from incline_fast.text.prompts import Prompt, render, tokenize

__all__ = [
    "CollectOptions",
    "Collection",
    "HiddenStates",
    "Pooling",
    "StatesError",
    "collect",
    "evaluated",
    "plan",
]

HiddenStates = dict[int, Tensor]
"""Site -> fp32 ``[n, d]`` on the CPU; row i belongs to sentence i."""

Pooling = Literal["last", "mean", "mean_all"]

BATCH_TOKENS = 1024
"""Default bound on the tokens of a batch. On a CPU larger batches are no faster; on a GPU they are."""


def collect(
    model: nn.Module,
    tokenizer: Any,
    sentences: Iterable[str],
    *,
    template: str | None = None,
    pooling: Pooling = "last",
    site: SiteKind = "hidden",
    layers: Iterable[int] | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
    resume: str | PathLike[str] | None = None,
    distributed: bool = False,
) -> HiddenStates:
    """Run the model's backbone over sentences and keep one pooled state per sentence and site.

    Site 0 is the output of the embedding, site l = 1..L the output of block l. The states are taken where the next norm
    reads them, so the last one is the residual stream itself and not, as in ``output_hidden_states``, already
    normalised. Nothing of size ``[batch, tokens, d]`` is kept and the LM head is not computed.

    Sentences are tokenised with the special tokens that the tokenizer adds by default. Which tokens are real, and which
    is the last of them, is defined in :mod:`incline_fast.text.prompts`. Batches are padded on the right whatever
    ``tokenizer.padding_side`` says; a causal model's real states do not depend on the side, and no pad token is needed.
    Tokens that all prompts begin with (few-shot examples in the template) run once, not for every sentence, where there
    are at least 16 of them and ``pooling`` is ``"last"``.

    Args:
        model: a causal LM of transformers, or its backbone. It is evaluated (no dropout) and left as it was.
        tokenizer: its tokenizer; never changed.
        sentences: n texts.
        template: text with exactly one ``{sentence}``, for example ``"{sentence}\\nThe topic of this text is"``; None
            for the bare sentence.
        pooling: ``"last"``, the state of the last real token, or ``"mean"``, the fp32 mean over the real tokens,
            or ``"mean_all"``, over all tokens, BOS and EOS included.
        site: ``"hidden"``, the residual stream; ``"attention"`` or ``"ffn"``, what attention or the feed-forward
            network of block l returns (site 0 stays the embedding's output).
        layers: sites to keep, all by default.
        batch_tokens: bound on sentences times tokens of a batch, padding included. A longer sentence is its own batch.
        progress: show a progress bar.
        resume: a folder where every finished batch is kept. A call with the same model, sentences, template, pooling
            and layers goes on after the batches that are there; a call with others is refused.
        distributed: share the batches among the processes of the default process group; all call with the same
            arguments, and all get all states, bit for bit those of one process.

    Returns:
        ``{site: fp32 [n, d]}`` on the CPU, in the order of ``sentences``.

    Raises:
        TypeError: sentences is a string or holds something that is not one.
        ValueError: an argument is out of range.
        PromptError: a sentence is empty or has no real token, too many, or some that the model does not know.
        StatesError: a state is not finite; the model is being edited; ``resume`` names a folder with states of
            something else, or a damaged one.
        UnsupportedModelError: the architecture is not known.
        RankError: another process has died.
    """
    rank_and_size(distributed)
    options = CollectOptions(template, pooling, site, layers, batch_tokens, resume)
    return plan(model, tokenizer, sentences, options).run(progress=progress, distributed=distributed)


@dataclass(frozen=True)
class CollectOptions:
    """The arguments of :func:`collect` that decide which states are taken; their names and meanings are the same."""

    template: str | None
    pooling: Pooling
    site: SiteKind
    layers: Iterable[int] | None
    batch_tokens: int
    resume: str | PathLike[str] | None


def plan(model: nn.Module, tokenizer: Any, sentences: Iterable[str], options: CollectOptions) -> Collection:
    """Check all that can be refused before a forward pass; arguments and errors as in :func:`collect`."""
    if options.pooling not in get_args(Pooling):
        raise ValueError(f"pooling is {options.pooling!r}; allowed: {', '.join(get_args(Pooling))}")
    if whole("batch_tokens", options.batch_tokens) < 1:
        raise ValueError(f"batch_tokens is {options.batch_tokens}; expected at least 1")
    architecture = describe(model, options.site)
    if architecture.backbone in ACTIVE:
        raise StatesError("the model is being edited by an intervention; leave it to collect the states of the model")
    sites = _check_layers(options.layers, architecture.num_layers)
    sentences = sentences if isinstance(sentences, str) else list(sentences)
    device = input_device(architecture)
    prompts = tokenize(tokenizer, render(sentences, options.template), token_limits(architecture))
    if options.pooling == "mean_all":
        prompts = [replace(prompt, real=[True] * len(prompt.ids)) for prompt in prompts]
    shards = None
    if options.resume is not None:
        shards = Shards(Path(options.resume), _manifest(model, sentences, prompts, sites, options))
        shards.check(sites, len(prompts), architecture.hidden_size)
    return Collection(architecture, prompts, options.pooling, sites, int(options.batch_tokens), shards, device)


@dataclass(frozen=True)
class Collection:
    """A planned run over sentences: all checks have passed, no forward pass has run.

    Attributes:
        architecture: of the model.
        prompts: the tokenised sentences.
        pooling, sites, batch_tokens: see :func:`collect`.
        shards: where finished batches are kept, None to keep none.
        device: where the token ids belong.
    """

    architecture: Architecture
    prompts: list[Prompt]
    pooling: Pooling
    sites: list[int]
    batch_tokens: int
    shards: Shards | None
    device: torch.device

    def run(self, *, progress: bool, distributed: bool) -> HiddenStates:
        """The states; see :func:`collect`."""
        rank, size = rank_and_size(distributed)
        if distributed and has_part_of_weights(self.architecture.model):
            raise ValueError(
                "distributed is True and the model's weights are shared out among processes (tensor parallelism), "
                "which must run the same batches; leave distributed out: every process then collects all states"
            )
        states, done = self._restored(rank, size)
        batches = _batches([prompt for prompt in self.prompts if prompt.index not in done], self.batch_tokens)
        counts = {"total": len(self.prompts), "initial": len(done), "disable": not progress or rank > 0}
        with tqdm(desc="hidden states", unit="sentence", **counts) as bar, _Recorder(self) as recorder:
            for number, batch in enumerate(batches):
                if number % size == rank:
                    self._keep(states, batch, recorder.run(batch))
                bar.update(len(batch))
        if size > 1:
            # Each row was computed by one process and is zero in all others, so the sum is exact.
            for rows in states.values():
                total(rows)
        return states

    def _restored(self, rank: int, size: int) -> tuple[HiddenStates, set[int]]:
        """The states with the rows of finished batches filled in, zeros elsewhere, and the indices of these rows.

        They are filled in on rank 0 alone, because the states of all processes are added in the end.
        """
        shape = len(self.prompts), self.architecture.hidden_size
        states = {site: torch.zeros(shape, dtype=torch.float32, device="cpu") for site in self.sites}
        done = set() if self.shards is None else self.shards.restore(states)
        if size > 1:
            # No process writes before all have read what is done, so that all divide the same remaining sentences.
            synchronize()
            if rank > 0:
                for rows in states.values():
                    rows.zero_()
        return states, done

    def _keep(self, states: HiddenStates, batch: Sequence[Prompt], pooled: HiddenStates) -> None:
        """Put the rows of one batch into ``states`` and into the shards."""
        _check_finite(pooled, batch, self.architecture.model)
        indices = torch.tensor([prompt.index for prompt in batch], device="cpu")
        for site in self.sites:
            states[site][indices] = pooled[site]
        if self.shards is not None:
            self.shards.write(indices, pooled)


class _Recorder:
    """Runs batches through the backbone and pools each site's states as soon as they are computed."""

    def __init__(self, collection: Collection) -> None:
        self._architecture = collection.architecture
        self._sites = collection.sites
        self._pooling = collection.pooling
        self._device = collection.device
        self._shared_tokens = _shared_tokens(collection.prompts, collection.pooling)
        self._shared = SharedPrefix((), {})
        self._stack = ExitStack()
        self._real = torch.empty(0, device="cpu")
        self._pooled: HiddenStates = {}

    def __enter__(self) -> _Recorder:
        with ExitStack() as stack:
            stack.enter_context(evaluated(self._architecture.model))
            self._shared = run_shared_prefix(self._architecture, self._shared_tokens)
            for site in self._sites:
                handle = self._architecture.sites[site].observe(partial(self._keep, site))
                stack.callback(handle.remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def run(self, batch: Sequence[Prompt]) -> HiddenStates:
        """Pooled states ``{site: fp32 [len(batch), d]}`` on the CPU."""
        ids, mask, self._real = _padded(batch, len(self._shared))
        self._pooled = {}
        cache = None
        if len(self._shared):
            cache = key_value_cache(self._architecture, self._shared, {}, own_tokens=0, rows=len(batch))
        with torch.no_grad():
            self._architecture.backbone(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                past_key_values=cache,
                use_cache=cache is not None,
            )
        return self._pooled

    def _keep(self, site: int, h: Tensor) -> None:
        self._pooled[site] = pool(h, self._real.to(h.device), self._pooling).cpu()


def _padded(batch: Sequence[Prompt], skip: int) -> tuple[Tensor, Tensor, Tensor]:
    """``(ids, mask, real)``, padded on the right; ``ids`` and ``real`` leave out the first ``skip`` tokens."""
    width = max(len(prompt.ids) for prompt in batch) - skip
    ids = torch.zeros(len(batch), width, dtype=torch.long, device="cpu")
    mask = torch.zeros(len(batch), skip + width, dtype=torch.long, device="cpu")
    real = torch.zeros(len(batch), width, dtype=torch.bool, device="cpu")
    for row, prompt in enumerate(batch):
        ids[row, : len(prompt.ids) - skip] = torch.tensor(prompt.ids[skip:], device="cpu")
        mask[row, : len(prompt.ids)] = 1
        real[row, : len(prompt.ids) - skip] = torch.tensor(prompt.real[skip:], device="cpu")
    return ids, mask, real


def _shared_tokens(texts: Sequence[Prompt], pooling: Pooling) -> list[int]:
    """The tokens that all texts begin with; none with a mean, which needs the states of all tokens of every text."""
    if pooling != "last":
        return []
    return texts[0].ids[: common_prefix([text.up_to_last for text in texts])]


def pool(h: Tensor, real: Tensor, pooling: Pooling) -> Tensor:
    """fp32 ``[B, d]`` from ``h [B, T, d]`` and ``real`` bool ``[B, T]``, at least one real token per row.

    Tokens that are not real are never read, not even with weight 0: 0 NaN is NaN.
    """
    if pooling != "last":
        kept = h.float().masked_fill(~real.unsqueeze(-1), 0.0)
        return kept.sum(1) / real.sum(1, keepdim=True)
    positions = torch.arange(real.shape[1], device=h.device)
    last = torch.where(real, positions, -1).amax(1)
    return h[torch.arange(len(h), device=h.device), last].float()


def _check_layers(layers: Iterable[int] | None, num_layers: int) -> list[int]:
    if layers is None:
        return list(range(num_layers + 1))
    sites = sorted(set(wholes("layers", layers)))
    if not sites or sites[0] < 0 or sites[-1] > num_layers:
        raise ValueError(f"layers is {sites}; allowed: sites 0 (embedding) to {num_layers}, at least one")
    return sites


def _batches(texts: list[Prompt], batch_tokens: int) -> Iterator[list[Prompt]]:
    """Sentences of like length together, the longest first, so that too large a batch fails at once."""
    batch: list[Prompt] = []
    for text in sorted(texts, key=lambda text: (-len(text.ids), text.index)):
        if batch and (len(batch) + 1) * len(batch[0].ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


def _check_finite(pooled: HiddenStates, batch: Sequence[Prompt], model: nn.Module) -> None:
    for site, rows in pooled.items():
        bad = (~rows.isfinite().all(1)).nonzero()
        if len(bad):
            hint = ""
            if any(parameter.dtype == torch.float16 for parameter in model.parameters()):
                hint = "; the model runs in float16, which ends at 65504: load it in bfloat16 or float32"
            raise StatesError(f"the state of sentence {batch[int(bad[0])].index} at site {site} is not finite{hint}")


def _manifest(
    model: nn.Module, sentences: Sequence[str], prompts: Sequence[Prompt], sites: list[int], options: CollectOptions
) -> dict[str, Any]:
    """All that the states depend on; any difference makes kept states useless."""
    identity = identify(model)
    manifest = {
        "model": identity.model_id,
        "config_hash": identity.config_hash,
        "weights_hash": weights_hash(model),
        "sentences": len(sentences),
        "sentences_hash": text_hash(sentences),
        "tokens_hash": text_hash(str(prompt.ids) for prompt in prompts),
        "template": options.template,
        "pooling": options.pooling,
        "layers": sites,
    }
    return manifest if options.site == "hidden" else manifest | {"site": options.site}
