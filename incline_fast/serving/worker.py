"""The plugin's part of a worker process: the maps, the norms, and the plan of each step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from incline_fast.alignment.alignment import Alignment
from incline_fast.serving.bank import Bank
from incline_fast.serving.catalog import content_hash
from incline_fast.serving.config import BankLayout, ServingConfig
from incline_fast.serving.errors import RequestError, ServingError
from incline_fast.serving.plan import Span, StepPlan
from incline_fast.serving.request import Edit, edit_of
from incline_fast.serving.self_check import check_edits
from incline_fast.serving.sites import ServedSite, check_norms, edit_in_front, find_sites

__all__ = ["WorkerEdits", "attach"]


class WorkerEdits:
    """Edits the model of one worker.

    Args:
        model: as vLLM loaded it.
        hf_config: the transformers configuration of its text decoder.
        config, layout: what the operator chose, and the sizes that follow.
        max_tokens: rows of the largest step.
        dtype, device: of the model's states.

    Raises:
        ServingError: the model's norms were not found, or the maps take too much memory.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        hf_config: Any,
        config: ServingConfig,
        layout: BankLayout,
        max_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.sites: list[ServedSite] = find_sites(model, hf_config)
        hidden_size = int(hf_config.hidden_size)
        check_norms(self.sites, hidden_size, dtype, device)
        self.max_tokens = max_tokens
        self.bank = Bank(config, layout, len(self.sites), hidden_size, device)
        self.plan = StepPlan(len(self.sites), max_tokens, device)
        self._checking = False
        self._requests: dict[str, tuple[Edit, int]] = {}
        edit_in_front(self.sites, self.bank, self.plan)

    def load(self, path: str, content: str, keep: Collection[str]) -> str:
        """Make the alignment of a file resident; returns why not, or an empty string.

        An exception would end the worker, and with it the engine.

        Args:
            path: the file.
            content: the hash that the file must have.
            keep: hashes of alignments that must stay resident.
        """
        try:
            alignment = Alignment.load(path)
            if content_hash(Path(path)) != content:
                raise RequestError(f"{Path(path).name} changed while it was loaded", "path", path)
            if alignment.hidden_size != self.bank.hidden_size or alignment.layers[-1] >= len(self.sites):
                raise RequestError(f"{Path(path).name} does not fit this model", "path", path)
            self.bank.load(content, alignment, keep)
        except (ValueError, OSError) as error:
            return str(error)
        return ""

    def check(self, run: Callable[[int], Tensor]) -> None:
        """The self-check; ``run`` as in :func:`incline_fast.serving.self_check.check_edits`."""
        self._checking = True
        try:
            check_edits(run, self.sites, self.bank, self.plan, self.max_tokens)
        finally:
            self._checking = False

    def dummy_step(self) -> None:
        """Called before a step without requests: nothing is edited in it, unless it belongs to the self-check."""
        if not self._checking:
            self.plan.clear()

    def track(self, scheduler_output: Any) -> None:
        """Note the requests that a step begins and forget those that have finished."""
        for finished in scheduler_output.finished_req_ids:
            self._requests.pop(finished, None)
        for new in scheduler_output.scheduled_new_reqs:
            parameters = new.sampling_params
            edit = None if parameters is None else edit_of(parameters.extra_args)
            self._requests.pop(new.req_id, None)
            if edit is not None:
                self._requests[new.req_id] = edit, int(new.prompt_len)

    def plan_step(self, rows: Iterable[tuple[str, int, int, int]]) -> None:
        """Write the step's plan.

        Args:
            rows: per request its id, its first row, the position of that row and the number of rows.

        Raises:
            ServingError: an admitted request names an alignment that is not resident, which admission has to prevent.
        """
        if not self._requests:
            if self.plan.edited:
                self.plan.clear()
            return
        spans = []
        for request, row, position, length in rows:
            known = self._requests.get(request)
            if known is None:
                continue
            edit, prompt_length = known
            slots = self.bank.slot_of(edit.content)
            if slots is None:
                raise ServingError(f"request {request} was admitted with the map {edit.content}, which is not resident")
            spans.append(Span(edit, slots, row, position, length, prompt_length))
        self.plan.fill(spans)


def attach(worker: Any, edits: WorkerEdits) -> None:
    """Let a worker's model runner announce its steps: ``GPUModelRunner`` of vllm/v1/worker/gpu_model_runner.py.

    Raises:
        ServingError: the runner prepares its steps in another way, so that nothing would be edited.
    """
    runner = worker.model_runner
    missing = [name for name in ("execute_model", "_prepare_inputs", "_dummy_run") if not hasattr(runner, name)]
    if missing:
        raise ServingError(f"{type(runner).__name__} has no {' and no '.join(missing)}; nothing would be edited")
    execute, prepare, dummy = runner.execute_model, runner._prepare_inputs, runner._dummy_run

    def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        edits.track(scheduler_output)
        return execute(scheduler_output, *args, **kwargs)

    def prepare_inputs(scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        result = prepare(scheduler_output, num_scheduled_tokens)
        batch = runner.input_batch
        row, rows = 0, []
        for index, request in enumerate(batch.req_ids):
            length = int(num_scheduled_tokens[index])
            rows.append((request, row, int(batch.num_computed_tokens_cpu[index]), length))
            row += length
        edits.plan_step(rows)
        return result

    def dummy_run(*args: Any, **kwargs: Any) -> Any:
        edits.dummy_step()
        return dummy(*args, **kwargs)

    runner.execute_model = execute_model
    runner._prepare_inputs = prepare_inputs
    runner._dummy_run = dummy_run
