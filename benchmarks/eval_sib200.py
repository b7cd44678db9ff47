"""Topic accuracy on SIB-200 with and without the intervention: ``python -m benchmarks.eval_sib200 --data DIR``.

DIR holds the folders of SIB-200 (``fra_Latn/test.tsv`` ...; Adelani et al., EACL 2024). The alignments and their alphas
are those that the demo chose, on other text: nothing is tuned here. A topic is scored by the log-likelihood of its name
after the prompt template; the highest wins. Intervals are 95% paired bootstrap intervals of the difference to the plain
prompt.
"""

from __future__ import annotations

import argparse
import copy
import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo.fetch import CACHE, prepare
from incline_fast import Alignment, intervene
from incline_fast.text.prompts import DEFAULT_TEMPLATE, fill

FOLDERS = {"fr": "fra_Latn", "de": "deu_Latn", "tr": "tur_Latn"}
ENGLISH = "eng_Latn"
RESULTS = Path(__file__).parent / "results" / "sib200.csv"
COLUMNS = ("language", "line", "accuracy", "difference", "low", "high", "n", "model", "preset", "alpha")
BATCH, RESAMPLES = 16, 10000


def read(path: Path) -> list[tuple[str, str, str]]:
    """``(index_id, topic, text)`` of every row, ordered by index."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return sorted((row["index_id"], row["category"], row["text"]) for row in rows)


def scores(
    model: Any, tokenizer: Any, texts: list[str], topics: list[str], alignment: Alignment | None, alpha: float
) -> Tensor:
    """Log-likelihood ``[texts, topics]`` of every topic's name after every prompt.

    The prompt's pass is edited, the tokens of the names are not: they are no prompt.
    """
    prompts = [fill(DEFAULT_TEMPLATE, text) for text in texts]
    names = [tokenizer(" " + topic, add_special_tokens=False).input_ids for topic in topics]
    found = torch.empty(len(texts), len(topics))
    order = sorted(range(len(texts)), key=lambda i: len(prompts[i]))
    for start in tqdm(range(0, len(order), BATCH), desc="score", unit="batch", leave=False):
        rows = order[start : start + BATCH]
        batch = tokenizer([prompts[i] for i in rows], return_tensors="pt", padding=True, padding_side="left")
        mask = batch["attention_mask"]
        inputs = {**batch, "position_ids": (mask.cumsum(1) - 1).clamp(min=0), "logits_to_keep": 1}
        if alignment is None:
            output = model(**inputs, use_cache=True)
        else:
            with intervene(model, alignment, alpha=alpha):
                output = model(**inputs, use_cache=True)
        first = output.logits[:, -1].log_softmax(-1)
        for column, ids in enumerate(names):
            found[rows, column] = first[:, ids[0]] + _rest(model, ids, output.past_key_values, mask)
    return found


def _rest(model: Any, ids: list[int], cache: Any, mask: Tensor) -> Tensor:
    """Log-likelihood ``[B]`` of a name's tokens after its first."""
    if len(ids) == 1:
        return torch.zeros(len(mask))
    fed = torch.tensor(ids[:-1]).expand(len(mask), -1)
    longer = torch.cat([mask, torch.ones_like(fed)], 1)
    positions = (longer.cumsum(1) - 1)[:, -fed.shape[1] :]
    logits = model(
        input_ids=fed, attention_mask=longer, position_ids=positions, past_key_values=copy.deepcopy(cache)
    ).logits
    return logits.log_softmax(-1).gather(-1, torch.tensor(ids[1:]).expand_as(fed)[..., None]).sum((1, 2))


def interval(difference: Tensor) -> tuple[float, float]:
    """Percentile interval of the mean of paired differences."""
    draws = torch.randint(len(difference), (RESAMPLES, len(difference)), generator=torch.Generator().manual_seed(0))
    low, high = difference[draws].mean(1).quantile(torch.tensor([0.025, 0.975]))
    return float(low), float(high)


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the folders of SIB-200")
    parser.add_argument("--model", default="gemma3", help="gemma3, smollm2 or a folder; the demo must have run on it")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    prepared = prepare(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(prepared.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(prepared.model)
    english = read(arguments.data / ENGLISH / "test.tsv")
    topics = sorted({topic for _, topic, _ in english})
    truth = torch.tensor([topics.index(topic) for _, topic, _ in english])

    def correct(texts: list[str], alignment: Alignment | None = None, alpha: float = 0.0) -> Tensor:
        return (scores(model, tokenizer, texts, topics, alignment, alpha).argmax(1) == truth).float()

    rows: list[tuple[Any, ...]] = []
    with torch.inference_mode():
        on_english = correct([text for _, _, text in english])
        for language, folder in FOLDERS.items():
            texts = read(arguments.data / folder / "test.tsv")
            if [row[:2] for row in texts] != [row[:2] for row in english]:
                raise ValueError(f"{folder}/test.tsv and {ENGLISH}/test.tsv do not have the same rows")
            path = CACHE / "alignments" / f"{prepared.model.resolve().name}-{language}-en.safetensors"
            maps = Alignment.load(path, model)
            alpha = maps.metadata.recommended_alpha or 0.0
            sources = [text for _, _, text in texts]
            plain = correct(sources)
            lines = {"plain": plain, "intervened": correct(sources, maps, alpha), "English prompt": on_english}
            for line, hits in lines.items():
                difference = hits - plain
                accuracies = float(hits.mean()), float(difference.mean()), *interval(difference)
                about = len(hits), prepared.title, "robust", alpha if line == "intervened" else ""
                rows.append((language, line, *accuracies, *about))
                print(language, line, *(f"{value:.3f}" for value in accuracies), flush=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with arguments.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)


if __name__ == "__main__":
    main()
