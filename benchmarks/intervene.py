"""What an intervention costs a prompt and a token, beside a hook written by hand and the two passes of the paper.

python -m benchmarks.intervene --threads 2 -o benchmarks/results/intervene-2t.csv
python -m benchmarks.intervene --model llama --threads 2 -o benchmarks/results/intervene-llama-2t.csv
python -m benchmarks.intervene --hollow --threads 2 -o benchmarks/results/intervene-hollow-gemma-2t.csv

A random model generates with dense maps at the outputs of its blocks: one of the shape of Gemma 3 270M (18 layers,
d = 640, fp32), or a Llama (12 layers, d = 2048, bf16), both with a small vocabulary:

  hook    output hooks on the blocks: ``h[:, -1] += alpha * (h[:, -1] @ W.T)`` for passes of more than one token
  ours    inside ``intervene(model, alignment, alpha=...)``
  ours+   with entering and leaving for each prompt
  mixed   two alignments, every second row of the batch with the other one
  twice   the published way: a first pass records the last states, hooks of a second set the edited ones

and with ``--rivals`` the libraries of ``benchmarks/rivals.py``. With padding on the right the hook edits the last
column: the same work, another token.

Rounds are paired: every way once, in turn, in changing order; every fourth round times tokens too. Extra milliseconds
are medians over rounds of the difference to the plain model in the same round. Before timing, the tokens of ``ours``
are compared with the hook's.
``enter_ms`` is entering and leaving alone.

A long prompt or a batch moves from round to round by more than an edit takes. With ``--hollow`` attention and MLP
return their input: norms, residual sums and everything around them stay, and the edit is no longer lost beside a
matrix product. Maps, states and code are then in the caches where a real model would have pushed them out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from benchmarks.rivals import APPLY_MAPS, Generate, installed, options
from incline_fast import Alignment, intervene
from incline_fast.bench.machine import about, threads
from incline_fast.files import write_table

ALPHA, NEW_TOKENS, VOCABULARY = 0.3, 8, 4096
PROMPTS_PER_DECODE = 4
"""A prompt moves by more than an edit takes, so it is timed more often than tokens are."""


def random_llama() -> Any:
    """12 layers of d = 2048 in bf16."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=VOCABULARY,
        pad_token_id=0,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16).eval().requires_grad_(False)


def random_gemma() -> Any:
    """The sizes of Gemma 3 270M, except that the vocabulary is small, so that the blocks are most of a step."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        vocab_size=VOCABULARY,
        pad_token_id=0,
        eos_token_id=None,
    )
    return Gemma3ForCausalLM(config).eval().requires_grad_(False)


def hollow(model: Any) -> Any:
    """The model with nothing to compute in its blocks; prompts only, because no keys and values are kept."""
    for layer in model.model.layers:
        layer.self_attn.forward = lambda hidden_states, *args, **kwargs: (hidden_states, None)
        layer.mlp.forward = lambda hidden_states: hidden_states
    return model


@contextmanager
def hooked(model: Any, maps: dict[int, Tensor]) -> Iterator[None]:
    """Ten lines of PyTorch: edit the last token of every pass of more than one."""

    def hook(W: Tensor) -> Callable[..., Any]:
        def edit(module: Any, args: Any, output: Any) -> None:
            h = output[0] if isinstance(output, tuple) else output
            if h.shape[1] > 1:
                h[:, -1] += ALPHA * (h[:, -1] @ W)

        return edit

    handles = [model.model.layers[site - 1].register_forward_hook(hook(W)) for site, W in maps.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def twice(model: Any, maps: dict[int, Tensor], inputs: dict[str, Tensor]) -> Iterator[None]:
    """Record the last states in a separate pass, then set the edited ones during generation."""
    states: dict[int, Tensor] = {}

    def keep(site: int) -> Callable[..., Any]:
        return lambda m, a, out: states.__setitem__(site, (out[0] if isinstance(out, tuple) else out)[:, -1].clone())

    layers = model.model.layers
    handles = [layers[site - 1].register_forward_hook(keep(site)) for site in maps]
    model(**inputs, use_cache=False)
    for handle in handles:
        handle.remove()

    def put(site: int, W: Tensor) -> Callable[..., Any]:
        def edit(module: Any, args: Any, output: Any) -> None:
            h = output[0] if isinstance(output, tuple) else output
            if h.shape[1] > 1:
                h[:, -1] = states[site] + ALPHA * (states[site] @ W)

        return edit

    handles = [layers[site - 1].register_forward_hook(put(site, W)) for site, W in maps.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def padded(batch: int, length: int, side: str) -> dict[str, Tensor]:
    """Prompts of which every second is shorter by a quarter."""
    ids = torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(batch, length, dtype=torch.long)
    shorter = slice(0, length // 4) if side == "left" else slice(length - length // 4, length)
    mask[1::2, shorter] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def one_map(hidden: int, dtype: torch.dtype) -> Tensor:
    """Small enough to leave a random model's states in their range."""
    return (1e-2 * torch.randn(hidden, hidden)).to(dtype)


def check(model: Any, inputs: dict[str, Tensor], ours: Any, theirs: Any) -> None:
    """Both ways give the same logits after the prompt, to the rounding of the model's dtype."""
    found = []
    for around in (ours, theirs):
        with around:
            found.append(model(**inputs).logits[:, -1].float())
    error = float((found[0] - found[1]).abs().max() / found[1].abs().max())
    if error > (1e-4 if model.dtype is torch.float32 else 5e-2):
        raise AssertionError(f"the logits of the intervention are off from the hook's by {error:.1e} of the largest")


@dataclass
class Case:
    """A model, maps for all of its sites, and a batch of prompts."""

    model: Any
    maps: dict[int, Tensor]
    batch: int
    length: int
    side: str

    def __post_init__(self) -> None:
        self.inputs = padded(self.batch, self.length, self.side)
        self.alignment = Alignment.from_maps(self.maps)
        self.transposed = {site: W.T for site, W in self.maps.items()}

    @classmethod
    def of(cls, model: Any, size: str) -> Case:
        """``8x60r``: 8 prompts of 60 tokens, padded on the right."""
        batch, length = map(int, size.rstrip("r").split("x"))
        sites = range(1, model.config.num_hidden_layers + 1)
        maps = {site: one_map(model.config.hidden_size, model.dtype) for site in sites}
        return cls(model, maps, batch, length, "right" if size.endswith("r") else "left")

    def edited(self) -> AbstractContextManager[Any]:
        """One alignment for all rows."""
        return intervene(self.model, self.alignment, alpha=ALPHA)

    def mixed(self) -> AbstractContextManager[Any]:
        """Two alignments, in turn."""
        other = Alignment.from_maps({site: W.flip(0) for site, W in self.maps.items()})
        return intervene(
            self.model,
            {"a": self.alignment, "b": other},
            languages=(["a", "b"] * self.batch)[: self.batch],
            alpha=ALPHA,
        )

    def generate(self, tokens: int) -> Tensor:
        """So many tokens of every prompt, greedily."""
        out: Tensor = self.model.generate(**self.inputs, **options(tokens))
        return out


Way = Callable[[int], tuple[Tensor, float]]  # tokens to generate -> all tokens, seconds


def around(case: Case, enter: Callable[[], AbstractContextManager[Any]], *, inside: bool = False) -> Way:
    """Generation in a block, timed with entering and leaving it, or only ``inside``."""

    def run(tokens: int) -> tuple[Tensor, float]:
        begin = time.perf_counter()
        with enter():
            begin = time.perf_counter() if inside else begin
            out = case.generate(tokens)
            end = time.perf_counter()
        return out, (end if inside else time.perf_counter()) - begin

    return run


def called(case: Case, generate: Generate) -> Way:
    """Generation by a function of another library."""

    def run(tokens: int) -> tuple[Tensor, float]:
        begin = time.perf_counter()
        out = generate(case.inputs, tokens)
        return out, time.perf_counter() - begin

    return run


def ways_of(case: Case, with_rivals: bool) -> dict[str, Way]:
    """Everything that takes turns, checked against the hook where both mean the same token."""
    ways = {
        "plain": around(case, nullcontext),
        "hook": around(case, lambda: hooked(case.model, case.transposed)),
        "ours": around(case, case.edited, inside=True),
        "ours+": around(case, case.edited),
        "twice": around(case, lambda: twice(case.model, case.transposed, case.inputs)),
    }
    if case.batch > 1:
        ways["mixed"] = around(case, case.mixed, inside=True)
    if (
        case.side == "right"
    ):  # the hook edits the last column, which is not every row's last token: its cost alone counts
        return ways
    check(case.model, case.inputs, case.edited(), hooked(case.model, case.transposed))
    if with_rivals:
        found = {name: called(case, way) for name, way in installed(case.model, case.transposed, ALPHA).items()}
        check_tokens(ways["hook"], {name: found[name] for name in APPLY_MAPS if name in found})
        ways.update(found)
    return ways


def check_tokens(hook: Way, others: dict[str, Way]) -> None:
    """Libraries that apply the maps generate the hook's tokens."""
    expected = hook(NEW_TOKENS)[0]
    for name, way in others.items():
        if not torch.equal(way(NEW_TOKENS)[0], expected):
            raise AssertionError(f"{name} generates other tokens than the hook")


def measure(case: Case, rounds: int, with_rivals: bool, prompts_only: bool) -> list[dict[str, Any]]:
    """One row per way."""
    ways = ways_of(case, with_rivals)
    prompts: dict[str, list[float]] = {name: [] for name in ways}
    tokens: dict[str, list[float]] = {name: [] for name in ways}
    entering: list[float] = []
    for turn in tqdm(range(rounds), desc=f"batch {case.batch}, {case.length} tokens, {case.side}", unit="round"):
        names = list(ways)
        names = names[turn % len(names) :] + names[: turn % len(names)]
        for name in names:
            prompts[name].append(ways[name](1)[1])
        if turn % PROMPTS_PER_DECODE == 0 and not prompts_only:
            for name in names:
                tokens[name].append((ways[name](NEW_TOKENS)[1] - prompts[name][-1]) / (NEW_TOKENS - 1))
        begin = time.perf_counter()
        with case.edited():
            pass
        entering.append(time.perf_counter() - begin)
    rows = [row_of(case, name, prompts, tokens) for name in ways]
    for row in rows:
        row["enter_ms"] = round(1e3 * statistics.median(entering), 3) if row["way"] == "ours+" else ""
    return rows


def extra(times: dict[str, list[float]], name: str, digits: int) -> float | str:
    """Median over rounds of the difference to the plain model in the same round, milliseconds; empty: not timed."""
    pairs = list(zip(times[name], times["plain"], strict=True))
    return round(1e3 * statistics.median(a - p for a, p in pairs), digits) if pairs else ""


def row_of(case: Case, name: str, prompts: dict[str, list[float]], tokens: dict[str, list[float]]) -> dict[str, Any]:
    """What one way takes for a prompt and for a token, and how much more than the plain model."""
    return {
        "way": name,
        "hidden_size": case.model.config.hidden_size,
        "layers": case.model.config.num_hidden_layers,
        "dtype": str(case.model.dtype).removeprefix("torch."),
        "batch": case.batch,
        "prompt_tokens": case.length,
        "padding": case.side,
        "prompt_ms": round(1e3 * statistics.median(prompts[name]), 2),
        "extra_prompt_ms": extra(prompts, name, 2),
        "extra_token_ms": extra(tokens, name, 3),
        "rounds": len(prompts[name]),
        **about(),
    }


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("gemma", "llama"), default="gemma")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch's pool")
    parser.add_argument("--rounds", type=int, default=40, help="paired rounds")
    parser.add_argument("--prompts", default="1x20,1x60,1x200,8x60,8x60r", help="batch x tokens, r: padded right")
    parser.add_argument("--hollow", action="store_true", help="nothing but norms in the blocks; prompts only")
    parser.add_argument("--rivals", action="store_true", help="pyvene, nnsight and steering-vectors too")
    parser.add_argument("-o", "--output", type=Path, help="CSV to write")
    arguments = parser.parse_args()
    with threads(arguments.threads), torch.inference_mode():
        model = random_gemma() if arguments.model == "gemma" else random_llama()
        model = hollow(model) if arguments.hollow else model
        rows = []
        for size in arguments.prompts.split(","):
            rows += measure(Case.of(model, size), arguments.rounds, arguments.rivals, arguments.hollow)
    for row in rows:
        print(row)
    if arguments.output is not None:
        write_table(rows, list(rows[0]), arguments.output)


if __name__ == "__main__":
    main()
