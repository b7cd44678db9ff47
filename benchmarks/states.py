"""Collecting hidden states with ``incline_fast.states.collect`` against one sentence a forward pass.

    python -m benchmarks.states --data DIR --model gemma3

Three kinds of text, the last token's state of every site kept:

  names     names of emoji in French, in the demo's template: prompts of about a dozen tokens
  news      French sentences of DIR/ntrex128 in the default template
  few-shot  the names behind one English example of each kind, which every prompt begins with

and three ways, which take turns in every round:

  ours       ``collect``
  published  one sentence a pass with ``output_hidden_states=True``, as the code of Wang et al. (ACL 2025) does it
  fair       the same with ``logits_to_keep=1`` and no cache: logits of all tokens are not needed

A ratio is the median over rounds of a way's time over ours in the same round. Before timing, the states are compared;
the last site's are left out, which ``output_hidden_states`` gives behind the final norm.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.sib200 import write
from demo.emoji_names import TEMPLATE, emoji_names
from demo.fetch import Prepared, prepare
from incline_fast.bench.loops import interleaved
from incline_fast.bench.machine import about
from incline_fast.evaluation import few_shot_template
from incline_fast.states import collect
from incline_fast.text.lines import text_lines
from incline_fast.text.prompts import DEFAULT_TEMPLATE, render

RESULTS = Path(__file__).parent / "results" / "cost-states.csv"
CASES = ("names", "news", "few-shot")
OURS = "ours"
ALLOWED = 1e-3
"""Relative difference of states in fp32: batches and shared keys add in another order."""


def texts_of(case: str, prepared: Prepared, data: Path, count: int) -> tuple[list[str], str]:
    """Sentences and their template; names are drawn evenly, because they are sorted by kind."""
    if case == "news":
        return list(text_lines(data / "ntrex128" / "newstest2019-ref.fra.txt"))[:count], DEFAULT_TEMPLATE
    tasks = emoji_names(prepared.names, prepared.kinds, ["en", "fr"])
    answers = tasks["en"].answers or []
    shown = [answers.index(label) for label in range(len(tasks["en"].labels))]
    rest = [i for i in range(len(answers)) if i not in shown]
    picked = [rest[i * len(rest) // count] for i in range(count)]
    template = few_shot_template(tasks["en"].select(shown)) if case == "few-shot" else TEMPLATE
    return [tasks["fr"].sentences[i] for i in picked], template


def one_by_one(model: Any, tokenizer: Any, prompts: list[str], **options: Any) -> dict[int, Tensor]:
    """The last token's state of every site, a forward pass for each prompt."""
    rows = []
    with torch.inference_mode():
        for prompt in prompts:
            found = model(**tokenizer(prompt, return_tensors="pt"), output_hidden_states=True, **options).hidden_states
            rows.append([h[0, -1] for h in found])
    return {site: torch.stack(list(states)) for site, states in enumerate(zip(*rows, strict=True))}


def check(mine: dict[int, Tensor], theirs: dict[int, Tensor]) -> float:
    """The largest relative difference over the sites but the last.

    Raises:
        SystemExit: it is above what is allowed.
    """
    error = max(float((mine[site] - theirs[site]).norm() / theirs[site].norm()) for site in list(mine)[:-1])
    if error > ALLOWED:
        raise SystemExit(f"states differ by {error:.1e} of their norm; allowed: {ALLOWED:.0e}")
    return error


def measure(
    model: Any, tokenizer: Any, texts: list[str], template: str, rounds: int
) -> tuple[dict[str, list[float]], float]:
    """Seconds of every way in every round, and the largest difference of states."""
    prompts = render(texts, template)
    ways: dict[str, Callable[[], dict[int, Tensor]]] = {
        OURS: lambda: collect(model, tokenizer, texts, template=template, progress=False),
        "published": lambda: one_by_one(model, tokenizer, prompts),
        "fair": lambda: one_by_one(model, tokenizer, prompts, logits_to_keep=1, use_cache=False),
    }
    few = slice(0, 6)
    mine = collect(model, tokenizer, texts[few], template=template, progress=False)
    error = check(mine, one_by_one(model, tokenizer, prompts[few]))
    taken = interleaved({name: lambda _, way=way: way for name, way in ways.items()}, rounds=rounds)
    return {name: [us / 1e6 for us in times] for name, times in taken.items()}, error


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with ntrex128")
    parser.add_argument("--model", default="gemma3", help="smollm2, gemma3 or a folder with a transformers model")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--sentences", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    prepared = prepare(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(prepared.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(prepared.model)
    for case in arguments.cases.split(","):
        texts, template = texts_of(case, prepared, arguments.data, arguments.sentences)
        tokens = [len(tokenizer(prompt).input_ids) for prompt in render(texts, template)]
        times, error = measure(model, tokenizer, texts, template, arguments.rounds)
        rows = [
            {
                "model": prepared.title,
                "case": case,
                "way": way,
                "seconds": round(statistics.median(own), 3),
                "ratio": round(statistics.median(a / b for a, b in zip(own, times[OURS], strict=True)), 2),
                "sentences": len(texts),
                "mean_tokens": round(statistics.mean(tokens), 1),
                "rounds": arguments.rounds,
                "difference": f"{error:.1e}",
                "load": round(os.getloadavg()[0], 1),
                **about(),
            }
            for way, own in times.items()
        ]
        write(RESULTS, rows, list(rows[0]), ("model", "case", "way"))
        for row in rows:
            print(*(row[name] for name in ("case", "way", "seconds", "ratio", "mean_tokens", "difference")), flush=True)


if __name__ == "__main__":
    main()
