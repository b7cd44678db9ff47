"""Random sequences of what users do to a model, with and without an intervention, against a second model and hooks.

    PYTHONPATH=tests/helpers python -m soak --sequences 2000 --seed 0

Each sequence takes a tiny model and its twin, which no intervention ever touches, and lets random actions follow one
another: enter, forward, generate, copy, load, an exception inside a pass, passes in threads, and leaving (also while a
thread still generates). After every action the result must be that of the twin, plain or under output hooks; at the
end every class and attribute of the model must be as before, and nothing of the interventions may be alive.
"""

from __future__ import annotations

import argparse
import copy
import gc
import pickle
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from hook_reference import HookedEdit, greedy, last_tokens
from interventions import CLOSE, random_maps
from tiny_models import prompts, tiny
from torch import Tensor, nn
from tqdm import tqdm
from transformers.generation.stopping_criteria import StoppingCriteria

from incline_fast.alignment.alignment import Alignment
from incline_fast.intervention.forward_pass import ForwardPass
from incline_fast.intervention.intervene import Intervention, InterventionError, intervene
from incline_fast.models.active import ACTIVE

NAMES = ("llama", "gpt2", "olmo2", "opt-post", "gemma3")
STEPS = 3
MAPS = random_maps()
ALIGNMENT = Alignment.from_maps(MAPS)


@cache
def fresh(name: str, seed: int) -> nn.Module:
    """A model to copy; making one takes longer than a sequence's passes."""
    return tiny(name, seed=seed)


class HalfWayError(Exception):
    """Raised in the middle of a pass."""


class Called(StoppingCriteria):
    """Calls something after every step of a generation."""

    def __init__(self, action: Any) -> None:
        self.action = action

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        self.action()
        return torch.zeros(len(input_ids), dtype=torch.bool)


def shape(model: nn.Module) -> list[tuple[Any, ...]]:
    """Every module with its class, attributes and hooks."""
    return [
        (id(m), type(m), tuple(sorted(vars(m))), len(m._forward_hooks), len(m._forward_pre_hooks))
        for m in model.modules()
    ]


class Sequence:
    """One sequence of actions."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        name = self.random.choice(NAMES)
        self.model = copy.deepcopy(fresh(name, seed % 3))
        self.twin = copy.deepcopy(fresh(name, seed % 3))
        self.name = name
        self.before = shape(self.model)
        self.run: Intervention | None = None
        self.alpha: Any = 0.0
        self.done: Counter[str] = Counter()

    def play(self, length: int) -> Counter[str]:
        """Run the actions; raises at the first difference."""
        actions = ("enter", "forward", "generate", "copy", "load", "exception", "threads", "exit", "exit_at_work")
        for _ in range(length):
            action = self.random.choice(actions)
            getattr(self, action)()
            self.done[action] += 1
        self.exit()
        assert shape(self.model) == self.before, "the model is not as before"
        return self.done

    def inputs(self) -> dict[str, Tensor]:
        rows = tuple(self.random.randint(1, 6) for _ in range(self.random.randint(1, 3)))
        return prompts(rows, side="left", seed=self.random.randrange(1000))

    def edit(self, inputs: dict[str, Tensor]) -> HookedEdit:
        return HookedEdit(MAPS, self.alpha, where=last_tokens(inputs["attention_mask"]))

    def expected_logits(self, inputs: dict[str, Tensor]) -> Tensor:
        if self.run is None:
            return self.twin(**inputs).logits
        with self.edit(inputs).on(self.twin):
            return self.twin(**inputs).logits

    def expected_tokens(self, inputs: dict[str, Tensor]) -> Tensor:
        alpha = 0.0 if self.run is None else self.alpha
        return greedy(self.twin, HookedEdit(MAPS, alpha), inputs, STEPS)[0]

    def logits_agree(self, actual: Tensor, expected: Tensor, inputs: dict[str, Tensor]) -> None:
        real = inputs["attention_mask"].bool()
        torch.testing.assert_close(actual[real], expected[real], **CLOSE)

    def tokens(self, inputs: dict[str, Tensor], **settings: Any) -> Tensor:
        with torch.no_grad():
            out = self.model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, **settings)
        return out[:, inputs["input_ids"].shape[1] :]

    def enter(self) -> None:
        if self.run is not None:
            try:
                intervene(self.model, ALIGNMENT, alpha=0.1).__enter__()
            except InterventionError:
                return
            raise AssertionError("a second intervention was let in")
        self.alpha = self.random.choice((0.5, -0.3, 0.9))
        self.run = intervene(self.model, ALIGNMENT, alpha=self.alpha).__enter__()

    def forward(self) -> None:
        inputs = self.inputs()
        self.logits_agree(self.model(**inputs).logits, self.expected_logits(inputs), inputs)

    def generate(self) -> None:
        inputs = self.inputs()
        settings = {"use_cache": self.random.random() < 0.7}
        assert torch.equal(self.tokens(inputs, **settings), self.expected_tokens(inputs)), "tokens differ"

    def copy(self) -> None:
        make = self.random.choice((copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))))
        if self.run is not None:
            try:
                make(self.model)
            except InterventionError:
                return
            raise AssertionError("an edited model was copied")
        inputs = self.inputs()
        assert torch.equal(make(self.model)(**inputs).logits, self.twin(**inputs).logits)

    def load(self) -> None:
        seed = self.random.randrange(3)
        state = fresh(self.name, 200 + seed).state_dict()
        assign = self.random.random() < 0.5
        self.model.load_state_dict({k: v.clone() for k, v in state.items()}, assign=assign)
        self.twin.load_state_dict(state)  # copies; the model may have taken its tensors themselves
        self.forward()

    def exception(self) -> None:
        """A pass or generation that fails half-way leaves the intervention as it was."""
        inputs = self.inputs()
        blocks = max((m for m in self.model.modules() if isinstance(m, nn.ModuleList)), key=len)

        def stop(*args: Any) -> None:
            raise HalfWayError

        handle = self.random.choice(list(blocks)).register_forward_hook(stop)
        try:
            self.random.choice((lambda: self.model(**inputs), lambda: self.tokens(inputs)))()
        except HalfWayError:
            pass
        else:
            raise AssertionError("the exception was swallowed")
        finally:
            handle.remove()
        self.forward()

    def threads(self) -> None:
        """Passes and generations at the same time."""
        jobs = [(self.random.random() < 0.5, self.inputs()) for _ in range(4)]
        expected = [self.expected_logits(i) if plain else self.expected_tokens(i) for plain, i in jobs]

        def work(job: tuple[bool, dict[str, Tensor]]) -> Tensor:
            with torch.no_grad():
                return self.model(**job[1]).logits if job[0] else self.tokens(job[1])

        with ThreadPoolExecutor(2) as pool:
            for job, actual, wanted in zip(jobs, pool.map(work, jobs), expected, strict=True):
                if job[0]:
                    self.logits_agree(actual, wanted, job[1])
                else:
                    assert torch.equal(actual, wanted), "tokens of a thread differ"

    def exit(self) -> None:
        if self.run is not None:
            run, self.run = self.run, None
            run.__exit__(None, None, None)
        assert not ACTIVE & set(self.model.modules())

    def exit_at_work(self) -> None:
        """Leave while a thread generates: its text is edited from beginning to end."""
        inputs, begun, out = self.inputs(), threading.Event(), []
        expected = self.expected_tokens(inputs)
        thread = threading.Thread(target=lambda: out.append(self.tokens(inputs, stopping_criteria=[Called(begun.set)])))
        thread.start()
        begun.wait()
        self.exit()
        thread.join()
        assert torch.equal(out[0], expected), "a generation was edited in part"


def alive() -> int:
    """Interventions and passes that are still referenced."""
    gc.collect()
    return sum(type(thing) in (Intervention, ForwardPass) for thing in gc.get_objects())


def soak(sequences: int, seed: int = 0, length: int = 8, progress: bool = False) -> Counter[str]:
    """How often each action was played; raises at the first difference or leak."""
    torch.set_grad_enabled(False)
    total: Counter[str] = Counter()
    for index in tqdm(range(sequences), disable=not progress, unit="sequence", mininterval=10):
        try:
            total += Sequence(seed + index).play(length)
        except Exception as error:
            error.add_note(f"sequence {seed + index}")
            raise
    left = alive()
    assert left == 0, f"{left} interventions or passes are still alive"
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    total = soak(arguments.sequences, arguments.seed, progress=True)
    print(f"{arguments.sequences} sequences, no difference, no leak:", dict(total))


if __name__ == "__main__":
    main()
