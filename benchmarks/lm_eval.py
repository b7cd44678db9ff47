"""The paper's tasks in lm-evaluation-harness, plain and intervened: ``python -m benchmarks.lm_eval --data DIR``.

Runs the two commands that docs/lm_eval.md shows, for every task:

  incline-fast fit     preset ``robust`` on the first pairs of NTREX-128 (news; Federmann et al., 2022), in a template
                       that ends as the task's prompts end
  incline-fast lm-eval ``--model incline`` at alpha = 0, which is the plain model, and at the given alpha

Nothing is chosen on the task's rows. Accuracies and standard errors are the harness's; the difference has the 95%
interval of a paired bootstrap over the rows that it logged. DIR holds ntrex128 and the folders of docs/lm_eval.md. A
row of the table replaces one of the same model, task and alpha, so tasks can be run one by one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.sib200 import write
from demo.fetch import Prepared, prepare
from incline_fast.bench.machine import cpu_name
from incline_fast.evaluation import paired_bootstrap
from incline_fast.evaluation.harness.local_data import LANGUAGE_NAMES
from incline_fast.models.identity import weights_hash
from incline_fast.states.shards import text_hash
from incline_fast.text.lines import text_lines

RESULTS = Path(__file__).parent / "results" / "lm-eval.csv"
NTREX = {"de": "deu", "en": "eng", "es": "spa", "fr": "fra", "ru": "rus", "sw": "swa", "tr": "tur"}
TEMPLATES = {
    "xcopa": '{{sentence}} What is the cause? "A" or "B"?',
    "xwinograd": "{{sentence}}\nReplace the _ in the above sentence with the correct option:",
    "mgsm": "Below is an instruction that describes a task. Write a response that appropriately completes the request "
    "in {name}. Please answer in {name}.\n\n### Instruction:\n{{sentence}}\n\n### Response:",
}
METRICS = {"xcopa": "acc", "xwinograd": "acc", "mgsm": "exact_match"}
TASKS = "xcopa_tr,xwinograd_fr,xwinograd_ru,mgsm_fr,mgsm_es,mgsm_de,mgsm_sw"
SEED = 0
MAPS = "maps.safetensors"
KEY = ("model", "task", "alpha")
COLUMNS = (
    *KEY, "metric", "score", "stderr", "n", "difference", "low", "high", "pairs", "preset", "template", "batch_size",
    "seed", "weights_hash", "data_hash", "lm_eval", "torch", "cpu",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What the harness found in one run.

    Attributes:
        score, stderr: the task's metric and its standard error, as the harness reports them.
        each: ``[n]``, the metric of every row, in the order of the rows.
        rows: the harness's hash of each.
    """

    score: float
    stderr: float
    each: torch.Tensor
    rows: list[str]


def read_run(folder: Path, task: str, metric: str) -> Run:
    """Read what ``--output_path FOLDER --log_samples`` wrote.

    Raises:
        ValueError: the folder has not exactly one file of results and one of rows.
    """
    files = [[*folder.rglob("results_*.json")], [*folder.rglob(f"samples_{task}_*.jsonl")]]
    if [len(found) for found in files] != [1, 1]:
        raise ValueError(f"{folder} has {len(files[0])} files of results and {len(files[1])} of rows; expected 1 and 1")
    found = json.loads(files[0][0].read_text(encoding="utf-8"))["results"][task]
    score = next(name for name in found if name.startswith(f"{metric},"))
    rows = sorted((json.loads(line) for line in text_lines(files[1][0])), key=lambda row: row["doc_id"])
    return Run(
        found[score],
        found[score.replace(metric, f"{metric}_stderr", 1)],
        torch.tensor([float(row[metric]) for row in rows]),
        [row["doc_hash"] for row in rows],
    )


def command(*arguments: object, **environment: str) -> None:
    """``incline-fast`` with these arguments.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    line = [sys.executable, "-m", "incline_fast", *map(str, arguments)]
    print("incline-fast", *map(str, arguments), flush=True)
    subprocess.run(line, check=True, env=os.environ | environment)


def news(data: Path, language: str, pairs: int, folder: Path) -> Path:
    """A file with the first sentences of NTREX-128."""
    name = f"newstest2019-{'src' if language == 'en' else 'ref'}.{NTREX[language]}.txt"
    path = folder / f"news.{language}"
    path.write_text("".join(f"{line}\n" for line in text_lines(data / "ntrex128" / name)[:pairs]), encoding="utf-8")
    return path


def fit(arguments: argparse.Namespace, model: Path, task: str, folder: Path) -> None:
    """Write maps for a task's language to English."""
    kind, language = task.split("_")
    source, target = (news(arguments.data, code, arguments.pairs, folder) for code in (language, "en"))
    template = TEMPLATES[kind].format(name=LANGUAGE_NAMES[language])
    texts = ["--source", source, "--target", target, "--languages", f"{language},en"]
    command("fit", model, *texts, "--preset", "robust", "--holdout", 0, "--template", template, "-o", folder / MAPS)


def run(arguments: argparse.Namespace, model: Path, task: str, alpha: float, folder: Path) -> Run:
    """The harness at one strength; a run that is in the folder already is read."""
    kind, _ = task.split("_")
    limit = arguments.limit_generated if METRICS[kind] == "exact_match" else arguments.limit
    output = folder / f"alpha-{alpha:g}-rows-{limit}"
    if not [*output.rglob(f"samples_incline_{task}_*.jsonl")]:
        about = f"pretrained={model},alignment={folder / MAPS},alpha={alpha},dtype=float32"
        options = ["--batch_size", arguments.batch_size, "--device", "cpu", "--limit", limit, "--log_samples"]
        options += ["--seed", SEED, "--output_path", output]
        command(
            *("lm-eval", "--model", "incline", "--model_args", about, "--tasks", f"incline_{task}", *options),
            INCLINE_FAST_DATA=str(arguments.data),
        )
    return read_run(output, f"incline_{task}", METRICS[kind])


def rows_of(arguments: argparse.Namespace, prepared: Prepared, task: str, folder: Path) -> list[dict[str, Any]]:
    """A row for the plain model and one for the intervention."""
    kind, language = task.split("_")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MAPS).exists():
        fit(arguments, prepared.model, task, folder)
    plain, edited = (run(arguments, prepared.model, task, alpha, folder) for alpha in (0.0, arguments.alpha))
    about = {
        "model": prepared.title,
        "task": task,
        "metric": METRICS[kind],
        "n": len(plain.each),
        "pairs": arguments.pairs,
        "preset": "robust",
        "template": TEMPLATES[kind].format(name=LANGUAGE_NAMES[language]).replace("\n", "\\n"),
        "batch_size": arguments.batch_size,
        "seed": SEED,
        "data_hash": text_hash(plain.rows),
        "lm_eval": version("lm_eval"),
        "torch": torch.__version__,
        "cpu": cpu_name(),
    }
    assert plain.rows == edited.rows
    over = paired_bootstrap(edited.each, plain.each, seed=SEED)
    gain = {"difference": round(over.mean, 4), "low": round(over.low, 4), "high": round(over.high, 4)}
    return [
        about | {"alpha": float(alpha), "score": round(one.score, 4), "stderr": round(one.stderr, 4)} | beside
        for one, alpha, beside in ((plain, 0.0, {}), (edited, arguments.alpha, gain))
    ]


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with ntrex128, xcopa, xwinograd, mgsm")
    parser.add_argument("--model", default="smollm2", help="smollm2, gemma3 or a folder with a transformers model")
    parser.add_argument("--tasks", default=TASKS, help=f"SET_LANGUAGE of {', '.join(TEMPLATES)}")
    parser.add_argument("--pairs", type=int, default=200, help="sentences to fit")
    parser.add_argument("--alpha", type=float, default=0.4)
    parser.add_argument("--limit", type=int, default=250, help="rows of a multiple choice")
    parser.add_argument("--limit-generated", type=int, default=16, help="rows whose answer is generated")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--resume", type=Path, help="folder for maps and finished runs: a stopped script goes on")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    prepared = prepare(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(prepared.model, dtype=torch.float32)
    weights = {"weights_hash": weights_hash(model)}
    del model  # the commands load their own
    with tempfile.TemporaryDirectory() as temporary:
        for task in arguments.tasks.split(","):
            folder = (arguments.resume or Path(temporary)) / f"{task}-{prepared.model.name}-pairs-{arguments.pairs}"
            rows = [row | weights for row in rows_of(arguments, prepared, task, folder)]
            write(arguments.output, rows, COLUMNS, KEY)
            for row in rows:
                names = ("task", "alpha", "score", "stderr", "n", "difference", "low", "high")
                print(*(row.get(name, "") for name in names))


if __name__ == "__main__":
    main()
