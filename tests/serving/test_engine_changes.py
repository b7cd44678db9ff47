"""What the plugin puts around vLLM's functions, on stand-ins for the objects that vLLM passes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from served import LAYOUT, Config, Model, alignment

from incline_fast.serving import engine
from incline_fast.serving.config import ServingConfig
from incline_fast.serving.errors import ServingError
from incline_fast.serving.frontend import configure
from incline_fast.serving.plugin import version_problem
from incline_fast.serving.request import Edit
from incline_fast.serving.worker import WorkerEdits, attach


def request(content: str | None, *, prompt: int = 40, positions: str = "last", alpha: float = 0.5) -> Any:
    edit = None if content is None else Edit(content, alpha, 1.0, positions, 0)
    extra = None if edit is None else {"incline_fast": edit.wire()}
    return SimpleNamespace(
        request_id=f"request of {content}",
        num_prompt_tokens=prompt,
        sampling_params=SimpleNamespace(extra_args=extra),
    )


@pytest.mark.parametrize("version", ["0.32.0", "0.32.0+cpu", "0.32.5"])
def test_versions_that_are_served(version):
    assert version_problem(version) == ""


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "1.0.0", "0.32.0rc1", "dev"])
def test_other_versions_are_refused(version):
    assert f"serves vLLM >= 0.32.0 and < 0.33.0, and this is {version}" in version_problem(version)


def test_blocks_with_edited_positions_are_salted():
    lora = ("lora", "x")
    generate = engine.salted(lambda request, start, end, index: ((lora,) if start == 0 else None, index))
    blocks = [(start, start + 16) for start in range(0, 64, 16)]

    def salts(asked: Any) -> list[Any]:
        return [generate(asked, *block, 0)[0] for block in blocks]

    plain = salts(request(None))
    edited = salts(request("a"))
    assert edited[:2] == plain[:2], "positions up to 31 are shared with plain requests; 39 is edited"
    assert all(("incline", Edit("a", 0.5, 1.0, "last", 0).salt()) in found for found in edited[2:])
    assert salts(request("b"))[2:] != edited[2:] != salts(request("a", alpha=0.25))[2:]
    everything = salts(request("a", positions="all"))
    assert all(found for found in everything)
    assert lora in everything[0]


class Core:
    """What the plugin uses of an EngineCore."""

    def __init__(self, contents: list[str]) -> None:
        self.incline_residency = engine.Residency(contents)
        self.scheduler = SimpleNamespace(requests={})
        self.held = contents
        self.kept: list[str] = []

    def rpc(self, method: str, timeout: Any = None, args: Any = (), kwargs: Any = None) -> list[Any]:
        if method == "incline_contents":
            return [list(self.held)]
        _, content, self.kept = args
        self.held = [held for held in self.held if held in self.kept] + [content]
        return [""]


def test_maps_in_use_are_kept_and_requests_for_lost_ones_refused():
    core = Core(["a", "b", "c"])
    receive = engine.receiving(lambda self, request: request)
    arrive = engine.arrived(lambda self, request: self.scheduler.requests.update({request.request_id: request}))
    load = engine.managing(Core.rpc)
    receive(core, request("a"))  # on its way to the scheduler
    queued = request("b")
    receive(core, queued)
    arrive(core, queued)
    load(core, "incline_load", None, ("d.safetensors", "d", ["x"]))
    assert core.kept == ["a", "b", "x"]
    with pytest.raises(ValueError, match="was unloaded before the request arrived"):
        receive(core, request("c"))
    receive(core, request("d"))
    arrive(core, request("a"))
    assert core.incline_residency.in_use(core.scheduler) == {"a", "b", "d"}
    core.scheduler.requests.clear()
    assert core.incline_residency.in_use(core.scheduler) == {"d"}
    receive(core, request(None))
    with pytest.raises(ValueError, match="this engine has none"):
        receive(SimpleNamespace(), request("a"))


def edits() -> WorkerEdits:
    made = WorkerEdits(Model(), Config(), ServingConfig("x"), LAYOUT, 32, torch.float32, torch.device("cpu"))
    made.bank.load("a", alignment(), ())
    return made


def output(new: list[Any] = (), finished: tuple[str, ...] = ()) -> Any:
    made = [
        SimpleNamespace(req_id=n, sampling_params=r.sampling_params, prompt_len=r.num_prompt_tokens) for n, r in new
    ]
    return SimpleNamespace(scheduled_new_reqs=made, finished_req_ids=set(finished))


class Runner:
    """The calls of vLLM's model runner V1, in their order."""

    def __init__(self) -> None:
        self.input_batch = SimpleNamespace(req_ids=[], num_computed_tokens_cpu=np.zeros(4, np.int32))
        self.edited: list[int] = []

    def execute_model(self, scheduler_output: Any, tokens: list[int]) -> None:
        self._prepare_inputs(scheduler_output, np.array(tokens))

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: Any) -> None:
        pass

    def _dummy_run(self, count: int) -> None:
        pass


def rows(found: WorkerEdits) -> list[int]:
    return (found.plan.row_map[0] >= 0).nonzero().flatten().tolist()


def test_steps_of_a_runner():
    made, runner = edits(), Runner()
    attach(SimpleNamespace(model_runner=runner), made)
    runner.input_batch.req_ids = ["plain", "edited"]
    runner.execute_model(output([("plain", request(None)), ("edited", request("a", prompt=6))]), [5, 4])
    assert rows(made) == [], "the last prompt token is in the next chunk"
    runner.input_batch.req_ids = ["edited", "plain"]
    runner.input_batch.num_computed_tokens_cpu[:2] = (4, 5)
    runner.execute_model(output(), [2, 1])
    assert rows(made) == [1]
    runner._dummy_run(4)
    assert rows(made) == []
    runner.execute_model(output(finished=("edited",)), [2, 1])
    assert rows(made) == []


def test_a_runner_that_prepares_its_steps_otherwise_is_refused():
    other = SimpleNamespace(execute_model=None, prepare_inputs=None)
    with pytest.raises(ServingError, match="no _prepare_inputs and no _dummy_run; nothing would be edited"):
        attach(SimpleNamespace(model_runner=other), edits())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size is above 1"),
        ({"data_parallel_size": 2}, "data_parallel_size is above 1"),
        ({"use_v2_model_runner": True}, "set VLLM_USE_V2_MODEL_RUNNER=0"),
    ],
)
def test_configurations_that_are_refused_at_start_up(changed, message):
    values = {"pipeline_parallel_size": 1, "data_parallel_size": 1, "use_v2_model_runner": False, **changed}
    runner = values.pop("use_v2_model_runner")
    config = SimpleNamespace(parallel_config=SimpleNamespace(**values), use_v2_model_runner=runner)
    with pytest.raises(ServingError, match=message):
        configure(config, ServingConfig("x"))


def test_a_map_that_is_not_resident_is_never_skipped_silently():
    made = edits()
    made.track(output([("r", request("gone", prompt=3))]))
    with pytest.raises(RuntimeError, match="gone, which is not resident"):
        made.plan_step([("r", 0, 0, 3)])
