"""Seconds that tuning takes: ``python -m benchmarks.tune --data DIR --model gemma3``.

700 French and English sentences of SIB-200 (DIR holds its folders) in the task's prompt: 490 to fit, 210 to choose on.
First the states of both sides and of the prompts; then every setting of 5 lambdas and 20 strengths (21 with 0, which is
the plain model), once at the sites that the oracle leaves of the last third, as ``incline-fast tune`` does, and once at
every site of the model.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.sib200 import ENGLISH, write
from demo.fetch import prepare
from incline_fast.bench.machine import about
from incline_fast.evaluation import Development, sib200
from incline_fast.evaluation.sites import worthwhile
from incline_fast.evaluation.tune import DEFAULT_LAMS, Tuner
from incline_fast.intervention.sweep import DEFAULT_ALPHAS

RESULTS = Path(__file__).parent / "results" / "tune.csv"
LANGUAGE = "fra_Latn"
PAIRS, CHOSEN_ON = 700, 210


def timed(tuner: Tuner, sites: Sequence[int]) -> dict[str, Any]:
    """One choice among all settings at these sites."""
    start = time.perf_counter()
    trials = tuner.trials(sites)
    seconds = time.perf_counter() - start
    return {
        "sites": len(sites),
        "lams": len(DEFAULT_LAMS),
        "alphas": len(DEFAULT_ALPHAS),
        "settings": len(trials.settings),
        "rows": len(tuner.task),
        "seconds": round(seconds, 1),
        "chosen": str(trials.best()),
    }


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the folders of SIB-200")
    parser.add_argument("--model", default="gemma3", help="smollm2, gemma3 or a folder with a transformers model")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    prepared = prepare(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(prepared.model, dtype=torch.float32).eval()
    french, english = (
        sib200(arguments.data, language, ["train", "dev"]).select(range(PAIRS)) for language in (LANGUAGE, ENGLISH)
    )
    first = range(CHOSEN_ON)
    start = time.perf_counter()
    tuner = Tuner(
        model,
        AutoTokenizer.from_pretrained(prepared.model),
        french.sentences[CHOSEN_ON:],
        english.sentences[CHOSEN_ON:],
        Development(french.select(first), english.select(first).sentences),
    )
    states = round(time.perf_counter() - start, 1)
    named = {"model": prepared.title, "pairs": PAIRS, "states_seconds": states}
    found = {"the oracle's": timed(tuner, worthwhile(tuner.oracle)), "every site": timed(tuner, list(tuner.oracle))}
    rows = [named | {"which": which} | row | about() for which, row in found.items()]
    write(arguments.output, rows, list(rows[0]), ("model", "which"))
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
