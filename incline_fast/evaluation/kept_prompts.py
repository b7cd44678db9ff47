"""Prompts that have run up to their last token, kept in memory or in a folder, for any number of steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from incline_fast.models.identity import identify, weights_hash
from incline_fast.models.sites import evaluated
from incline_fast.states import HiddenStates
from incline_fast.states.prompt_runner import PromptBatch, PromptRunner, like_batches
from incline_fast.states.shards import Shards, text_hash

__all__ = ["KeptPrompts"]

_BATCH = 16


class KeptPrompts:
    """n prompts after their prefill, in batches of like length.

    Attributes:
        states: site -> fp32 ``[n, d]`` on the CPU, the plain states of the last token.
        first_block: steps can start at this site or later.
    """

    def __init__(
        self,
        runner: PromptRunner,
        ids: Sequence[Sequence[int]],
        *,
        sites: Sequence[int],
        first_block: int = 0,
        batch: int = _BATCH,
        folder: Path | None = None,
        progress: bool = True,
        what: str = "prompts",
    ) -> None:
        """Run the prompts, except for those that the folder has already.

        Args:
            runner: of the model.
            ids: tokens of every prompt.
            sites: whose plain states are wanted.
            first_block: keys and values of earlier blocks are not kept: steps cannot start before it.
            batch: prompts of one pass.
            folder: where they are kept, so that memory holds one batch at a time and a stopped run goes on; None: in
                memory.
            progress: show a progress bar.
            what: its label.

        Raises:
            StatesError: the folder holds something else.
        """
        self.first_block = first_block
        self._ids = [list(prompt) for prompt in ids]
        self._batches = list(like_batches(self._ids, range(len(self._ids)), batch))
        self._memory: list[PromptBatch] = []
        self._shards = None if folder is None else Shards(folder, self._manifest(runner, sites, first_block, batch))
        width = runner.architecture.hidden_size
        self.states: HiddenStates = {
            site: torch.zeros(len(self._ids), width, dtype=torch.float32, device="cpu") for site in sites
        }
        with (
            tqdm(total=len(self._ids), desc=what, unit="prompt", disable=not progress) as bar,
            evaluated(runner.architecture.model),
            torch.inference_mode(),
        ):
            self._shared = runner.share(self._ids)
            for number, indices in enumerate(self._batches):
                kept = self._load(number)
                if kept is None:
                    prompts = [self._ids[i] for i in indices]
                    kept = runner.prefill(prompts, self._shared, sites=sites, first_block=first_block)
                    self._keep(number, kept)
                for site in sites:
                    self.states[site][indices] = kept.states[site].cpu()
                bar.update(len(indices))

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[tuple[list[int], PromptBatch]]:
        """Every batch with the numbers of its prompts."""
        for number, indices in enumerate(self._batches):
            batch = self._memory[number] if self._shards is None else self._load(number)
            if batch is None:
                raise FileNotFoundError(f"batch {number} of the kept prompts is gone")
            yield indices, batch

    def _manifest(self, runner: PromptRunner, sites: Sequence[int], first_block: int, batch: int) -> dict[str, Any]:
        return {
            "model": identify(runner.model).model_id,
            "weights_hash": weights_hash(runner.model),
            "tokens_hash": text_hash(map(str, self._ids)),
            "layers": list(sites),
            "first_block": first_block,
            "batch": batch,
        }

    def _keep(self, number: int, batch: PromptBatch) -> None:
        if self._shards is None:
            self._memory.append(batch)
            return
        tensors: dict[str, Tensor] = {"last": batch.last, "mask": batch.mask}
        tensors |= {f"state.{site}": states for site, states in batch.states.items()}
        for block, pair in batch.own.items():
            tensors[f"keys.{block}"], tensors[f"values.{block}"] = pair
        self._shards.keep(f"prompts-{number:06d}", tensors)

    def _load(self, number: int) -> PromptBatch | None:
        if self._shards is None:
            return None
        tensors = self._shards.find(f"prompts-{number:06d}")
        if tensors is None:
            return None
        blocks = sorted(int(name.removeprefix("keys.")) for name in tensors if name.startswith("keys."))
        own = {block: (tensors[f"keys.{block}"], tensors[f"values.{block}"]) for block in blocks}
        states = {int(name.removeprefix("state.")): t for name, t in tensors.items() if name.startswith("state.")}
        return PromptBatch(tensors["last"], tensors["mask"], self._shared, own, self.first_block, states)
