"""What an intervention costs a prompt and a token, beside a hook written by hand and the two passes of the paper.

python -m benchmarks.intervene --threads 2 -o benchmarks/results/intervene-2t.csv
python -m benchmarks.intervene --model llama --threads 2 -o benchmarks/results/intervene-llama-2t.csv

A random model generates with dense maps at the outputs of its blocks: one of the shape of Gemma 3 270M (18 layers,
d = 640, fp32), or a Llama (12 layers, d = 2048, bf16), both with a small vocabulary:

  hook    output hooks on the blocks: ``h[:, -1] += alpha * (h[:, -1] @ W.T)`` for passes of more than one token
  ours    inside ``intervene(model, alignment, alpha=...)``
  ours+   with entering and leaving for each prompt
  mixed   two alignments, every second row of the batch with the other one
  twice   the published way: a first pass records the last states, hooks of a second set the edited ones

Rounds are paired: every way once, in turn, in changing order. Extra milliseconds are medians over rounds of the
difference to the plain model in the same round. Before timing, the tokens of ``ours`` are compared with the hook's.
``enter_ms`` is entering and leaving alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from incline_fast import Alignment, intervene
from incline_fast.bench.machine import commit, cpu_name, threads
from incline_fast.files import write_table

ALPHA, NEW_TOKENS, VOCABULARY = 0.3, 8, 4096


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


def measure(model: Any, batch: int, length: int, side: str, rounds: int) -> list[dict[str, Any]]:
    """One row per way."""
    config, dtype = model.config, model.dtype
    maps = {site: one_map(config.hidden_size, dtype) for site in range(1, config.num_hidden_layers + 1)}
    transposed = {site: W.T for site, W in maps.items()}
    alignment = Alignment.from_maps(maps)
    other = Alignment.from_maps({site: one_map(config.hidden_size, dtype) for site in maps})
    both, languages = {"a": alignment, "b": other}, (["a", "b"] * batch)[:batch]
    inputs = padded(batch, length, side)

    def generate(around: AbstractContextManager[Any], tokens: int, inside: bool = False) -> tuple[Tensor, float]:
        begin = time.perf_counter()
        with around:
            if inside:
                begin = time.perf_counter()
            out = model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
            end = time.perf_counter()
        return out, (end if inside else time.perf_counter()) - begin

    ways: dict[str, Callable[[int], tuple[Tensor, float]]] = {
        "plain": lambda n: generate(nullcontext(), n),
        "hook": lambda n: generate(hooked(model, transposed), n),
        "ours": lambda n: generate(intervene(model, alignment, alpha=ALPHA), n, inside=True),
        "ours+": lambda n: generate(intervene(model, alignment, alpha=ALPHA), n),
        "twice": lambda n: generate(twice(model, transposed, inputs), n),
    }
    if batch > 1:
        ways["mixed"] = lambda n: generate(intervene(model, both, languages=languages, alpha=ALPHA), n, inside=True)
    if side == "left":  # behind right padding the last column is not the last token, which this hook does not know
        check(model, inputs, intervene(model, alignment, alpha=ALPHA), hooked(model, transposed))
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    entering: list[float] = []
    for turn in tqdm(range(rounds), desc=f"batch {batch}, {length} tokens, {side}", unit="round"):
        names = list(ways)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            taken[name].append((ways[name](1)[1], ways[name](NEW_TOKENS)[1]))
        begin = time.perf_counter()
        with intervene(model, alignment, alpha=ALPHA):
            pass
        entering.append(time.perf_counter() - begin)
    plain = taken["plain"]
    rows = []
    for name, times in taken.items():
        prompt = statistics.median(a - p for (a, _), (p, _) in zip(times, plain, strict=True))
        token = statistics.median(
            ((b - a) - (q - p)) / (NEW_TOKENS - 1) for (a, b), (p, q) in zip(times, plain, strict=True)
        )
        rows.append(
            {
                "way": name,
                "hidden_size": config.hidden_size,
                "layers": config.num_hidden_layers,
                "dtype": str(dtype).removeprefix("torch."),
                "batch": batch,
                "prompt_tokens": length,
                "padding": side,
                "prompt_ms": round(1e3 * statistics.median(a for a, _ in times), 2),
                "extra_prompt_ms": round(1e3 * prompt, 2),
                "extra_token_ms": round(1e3 * token, 3),
                "enter_ms": round(1e3 * statistics.median(entering), 3) if name == "ours+" else "",
                "rounds": rounds,
                "threads": torch.get_num_threads(),
                "device": cpu_name(),
                "torch": torch.__version__,
                "commit": commit(),
            }
        )
    return rows


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("gemma", "llama"), default="gemma")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch's pool")
    parser.add_argument("--rounds", type=int, default=7, help="paired rounds")
    parser.add_argument("--prompts", default="1x20,1x60,1x200,8x60,8x60r", help="batch x tokens, r: padded right")
    parser.add_argument("-o", "--output", type=Path, help="CSV to write")
    arguments = parser.parse_args()
    with threads(arguments.threads), torch.inference_mode():
        model = random_gemma() if arguments.model == "gemma" else random_llama()
        rows = []
        for size in arguments.prompts.split(","):
            batch, length = map(int, size.rstrip("r").split("x"))
            rows += measure(model, batch, length, "right" if size.endswith("r") else "left", arguments.rounds)
    for row in rows:
        print(row)
    if arguments.output is not None:
        write_table(rows, list(rows[0]), arguments.output)


if __name__ == "__main__":
    main()
