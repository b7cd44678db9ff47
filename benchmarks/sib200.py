"""Topic accuracy on SIB-200, plain and intervened: ``python -m benchmarks.sib200 --data DIR --model smollm2``.

DIR holds the folders of SIB-200 (``fra_Latn/test.tsv`` ...; Adelani et al., EACL 2024). Maps are fitted without labels
on the sentences of train and dev, in the very prompt that is scored; :mod:`incline_fast.evaluation.comparison` says how
settings are chosen, and what stands beside them. The test rows are scored once.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo.fetch import prepare
from incline_fast.evaluation import few_shot_template, sib200
from incline_fast.evaluation.comparison import COLUMNS, Parts, compare_languages
from incline_fast.evaluation.sites import last_third
from incline_fast.evaluation.tune import DEFAULT_LAMS
from incline_fast.files import write_table

ENGLISH = "eng_Latn"
RESULTS = Path(__file__).parent / "results" / "sib200.csv"
SEED = 0


def read_parts(data: Path, languages: Sequence[str], shots: bool, pairs: int | None, each: int) -> dict[str, Parts]:
    """Rows by language, the same sentences in each; with shots, in a prompt that begins with English examples."""
    english = sib200(data, ENGLISH, ["train", "dev"])
    assert english.answers is not None
    first = [english.answers.index(label) for label in range(len(english.labels))]
    # The examples are never fitted or chosen on, whether they are shown or not.
    pool = [i for i in range(len(english)) if i not in first]
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(SEED)).tolist()
    drawn = [english.ids[pool[i]] for i in order]
    template = few_shot_template(english.select(sorted(first))) if shots else english.template
    found = {}
    for language in (ENGLISH, *languages):
        train, test = sib200(data, language, ["train", "dev"], template), sib200(data, language, ["test"], template)
        place = {row: i for i, row in enumerate(train.ids)}
        numbers = [place[row] for row in drawn]
        found[language] = Parts(
            # From the end, so that more rows to choose on leave the first pairs to fit the same.
            train.select(numbers[each:][::-1][:pairs]),
            train.select(numbers[:each]),
            test.select(sorted(range(len(test)), key=test.ids.__getitem__)),
        )
    return found


def write(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str], key: Sequence[str]) -> None:
    """Put rows into a table; they replace rows with the same key."""
    kept: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            new = {tuple(str(row[name]) for name in key) for row in rows}
            kept = [row for row in csv.DictReader(file) if tuple(row.get(name) for name in key) not in new]
    write_table([*kept, *rows], columns, path)


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the folders of SIB-200")
    parser.add_argument("--model", default="smollm2", help="smollm2, gemma3 or a folder with a transformers model")
    parser.add_argument("--languages", default="fra_Latn,deu_Latn,tur_Latn,swh_Latn")
    parser.add_argument("--shots", action="store_true", help="begin the prompt with one English example a topic")
    parser.add_argument("--pairs", type=int, help="sentences to fit, beside those to choose on; all without it")
    parser.add_argument("--development", type=int, default=600, help="rows to choose on, of all languages together")
    parser.add_argument("--lams", default=",".join(map(str, DEFAULT_LAMS)))
    parser.add_argument("--sites-from", type=int, help="first site that the oracle looks at; the last third without it")
    parser.add_argument("--resume", type=Path, help="folder for states and prompts: a stopped run goes on")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    languages = arguments.languages.split(",")
    prepared = prepare(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(prepared.model, dtype=torch.float32).eval()
    each = arguments.development // len(languages)
    parts = read_parts(arguments.data, languages, arguments.shots, arguments.pairs, each)
    count = model.config.get_text_config().num_hidden_layers
    found = compare_languages(
        model,
        AutoTokenizer.from_pretrained(prepared.model),
        {language: parts[language] for language in languages},
        parts[ENGLISH],
        sites=range(arguments.sites_from or last_third(count)[0], count + 1),
        lams=[float(lam) for lam in arguments.lams.split(",")],
        resume=arguments.resume,
        seed=SEED,
    )
    about = {"model": prepared.title, "prompt": "7-shot English" if arguments.shots else "zero-shot"}
    rows = [about | row for row in found.rows]
    write(arguments.output, rows, (*about, *COLUMNS), (*about, "language", "line", "calibration"))
    oracle = [
        {**about, "language": language, "site": site, "gain": gain.mean, "low": gain.low, "high": gain.high, "n": each}
        for language, sites in found.oracle.items()
        for site, gain in sites.items()
    ]
    beside = arguments.output.with_name(f"{arguments.output.stem}-oracle.csv")
    write(beside, oracle, list(oracle[0]), (*about, "language", "site"))
    for row in found.rows:
        if row["language"] == "all":
            print(*(row.get(name, "") for name in ("calibration", "line", "accuracy", "difference", "low", "high")))


if __name__ == "__main__":
    main()
