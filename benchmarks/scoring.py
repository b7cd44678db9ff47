"""Time to score 21 strengths at every site of a model: ``python -m benchmarks.scoring --model gemma3``.

Ours runs each prompt once and every variant as a row of a decode-shaped step that starts at its site. The separate way
runs the whole prompts again for every strength and site, in batches of the same prompts, through the same
``intervene``; it is timed on a drawn sample of the variants and scaled up to all of them. Both compute the same logits
of the label words, which is checked first. Rounds alternate.
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo.fetch import prepare
from incline_fast import Alignment, intervene
from incline_fast.bench.loops import interleaved
from incline_fast.bench.machine import cpu_name
from incline_fast.evaluation import LabelScorer, LabelTask, Variant
from incline_fast.files import write_table
from incline_fast.intervention.sweep import DEFAULT_ALPHAS
from incline_fast.models.architectures import describe
from incline_fast.models.label_head import head_of_tokens

RESULTS = Path(__file__).parent / "results" / "scoring.csv"
TEMPLATE = "{sentence}\nThe topic of this text is"
LABELS = ("science", "travel", "politics", "sports", "health", "entertainment", "geography")
WORDS = 30
COLUMNS = (
    "model", "prompts", "tokens", "variants", "seconds_ours", "seconds_separate", "ratio", "ratio_low", "ratio_high",
    "rounds", "sampled", "threads", "cpu", "torch",
)  # fmt: skip


def made_up_task(prompts: int) -> LabelTask:
    """Sentences of drawn English words: their content does not affect the time."""
    words = ["the", "of", "city", "water", "people", "music", "new", "large", "river", "game", "doctor", "plane"]
    chooser = random.Random(0)
    texts = [" ".join(chooser.choices(words, k=WORDS)) for _ in range(prompts)]
    return LabelTask("timing", "en", texts, TEMPLATE, LABELS, None, [str(i) for i in range(prompts)])


def maps_of(model: Any) -> Alignment:
    """Dense maps at every site but the embedding."""
    architecture = describe(model)
    d, generator = architecture.hidden_size, torch.Generator().manual_seed(0)
    sites = range(1, architecture.num_layers + 1)
    return Alignment.from_maps(
        {site: torch.randn(d, d, generator=generator) / d for site in sites},
        bias={site: torch.zeros(d) for site in sites},
        form="interpolate",
    )


def separate(model: Any, inputs: dict[str, Tensor], tokens: list[int], variants: list[Variant]) -> list[Tensor]:
    """Logits ``[n, K]`` of each variant by a whole pass over all prompts."""
    found = []
    with torch.inference_mode(), head_of_tokens(model, tokens):
        for variant in variants:
            assert variant.alignment is not None
            with intervene(model, variant.alignment, alpha=variant.alpha, layers=variant.sites):
                found.append(model(**inputs, logits_to_keep=1).logits[:, -1])
    return found


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma3")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sampled", type=int, default=18, help="variants that the separate way is timed on")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    prepared = prepare(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(prepared.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(prepared.model)
    task, maps = made_up_task(arguments.prompts), maps_of(model)
    variants = [
        Variant(f"{site} {alpha}", maps, alpha, (site,)) for site in maps.layers for alpha in DEFAULT_ALPHAS if alpha
    ]
    prompts = [TEMPLATE.replace("{sentence}", text) for text in task.sentences]
    inputs = dict(tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left"))
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)

    def ours() -> tuple[Tensor, list[int]]:
        scorer = LabelScorer(model, tokenizer, task, content_free=False, progress=False)
        return scorer.score(variants).logits, scorer.tokens

    logits, tokens = ours()
    drawn = random.Random(1).sample(range(len(variants)), arguments.sampled)
    chosen = [variants[i] for i in drawn]
    for i, whole in zip(drawn, separate(model, inputs, tokens, chosen), strict=True):
        torch.testing.assert_close(logits[i], whole, rtol=1e-3, atol=1e-3)
    scale = len(variants) / len(chosen) / 1e6
    times = interleaved(
        {"ours": lambda _: ours, "separate": lambda _: lambda: separate(model, inputs, tokens, chosen)},
        rounds=arguments.rounds,
    )
    fast, slow = [t / 1e6 for t in times["ours"]], [t * scale for t in times["separate"]]
    ratios = sorted(b / a for a, b in zip(fast, slow, strict=True))
    row = {
        "model": prepared.title,
        "prompts": arguments.prompts,
        "tokens": int(inputs["attention_mask"].sum()),
        "variants": len(variants),
        "seconds_ours": f"{statistics.median(fast):.2f}",
        "seconds_separate": f"{statistics.median(slow):.1f}",
        "ratio": f"{statistics.median(ratios):.1f}",
        "ratio_low": f"{ratios[0]:.1f}",
        "ratio_high": f"{ratios[-1]:.1f}",
        "rounds": arguments.rounds,
        "sampled": arguments.sampled,
        "threads": torch.get_num_threads(),
        "cpu": cpu_name(),
        "torch": torch.__version__,
    }
    print(row)
    rows = []
    if arguments.output.exists():
        with arguments.output.open(newline="", encoding="utf-8") as file:
            rows = [old for old in csv.DictReader(file) if old["model"] != row["model"]]
    write_table([*rows, row], COLUMNS, arguments.output)


if __name__ == "__main__":
    main()
