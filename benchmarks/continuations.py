"""XCOPA and XWinograd, plain and intervened: ``python -m benchmarks.continuations --data DIR --task xcopa``.

Neither set has English rows that are parallel to the others, so the maps are fitted on news (NTREX-128): for XCOPA
every sentence ends in the words that the task's prompts end in, in its own language; for XWinograd it loses its final
period. Nothing of the test rows is looked at: lambda, sites and alpha are chosen by accuracy on development rows of all
languages together, for the maps and for every control. The answer is the continuation of the higher log-likelihood,

    raw     as it is
    token   divided by the number of its tokens
    prior   less the plain model's log-likelihood after the end of the prompt alone (domain-conditional PMI, Holtzman
            et al., EMNLP 2021)
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.sib200 import write
from demo.fetch import prepare
from incline_fast.bench.machine import cpu_name
from incline_fast.evaluation import (
    PLAIN,
    ContinuationTask,
    Variant,
    fit_controls,
    paired_bootstrap,
    score_continuations,
    xcopa,
    xwinograd,
)
from incline_fast.evaluation.report import result_row
from incline_fast.evaluation.tasks import XCOPA_WORDS
from incline_fast.fitting.fit import fit_states
from incline_fast.models.identity import identify, weights_hash
from incline_fast.states import HiddenStates, collect
from incline_fast.text.lines import text_lines

RESULTS = Path(__file__).parent / "results" / "continuations.csv"
NTREX = {"en": "newstest2019-src.eng.txt", "tr": "tur", "sw": "swa", "fr": "fra", "ru": "rus", "jp": "jpn"}
LANGUAGES = {"xcopa": ("tr", "sw"), "xwinograd": ("fr", "ru")}
SCORES = ("raw", "token", "prior")
INCLINE = "INCLINE"
COLUMNS = (
    "model", "task", "language", "line", "score", "accuracy", "difference", "low", "high", "p_mcnemar", "n",
    "setting", "settings_tried", "pairs", "development_rows", "seed", "weights_hash", "data_hash", "torch", "cpu",
)  # fmt: skip


@dataclass(frozen=True)
class TaskPart:
    """A part of a task in one language, and the same continuations behind the end of the prompt alone."""

    task: ContinuationTask
    alone: ContinuationTask

    def select(self, numbers: Sequence[int]) -> TaskPart:
        """The rows with these numbers."""

        def part(task: ContinuationTask) -> ContinuationTask:
            picked = {
                name: [getattr(task, name)[i] for i in numbers]
                for name in ("prompts", "continuations", "answers", "ids")
            }
            return replace(task, **picked)

        return TaskPart(part(self.task), part(self.alone))


def last_words(task: ContinuationTask, name: str) -> ContinuationTask:
    """What is left of each prompt: the connecting words of XCOPA, the last word of XWinograd."""
    ends = [end for pair in XCOPA_WORDS.values() for end in pair] if name == "xcopa" else []

    def end(prompt: str) -> str:
        known = [words for words in ends if prompt.endswith(" " + words)]
        return max(known, key=len) if known else prompt.split(" ")[-1]

    return replace(task, prompts=[[end(prompt) for prompt in row] for row in task.prompts])


def read(data: Path, name: str, language: str, development: int, test: int) -> tuple[TaskPart, TaskPart]:
    """Rows to choose on and rows to report on."""
    if name == "xcopa":
        parts = [xcopa(data / "xcopa", language, split) for split in ("val", "test")]
        rows = [TaskPart(task, last_words(task, name)) for task in parts]
        return rows[0].select(range(development)), rows[1].select(range(min(test, len(rows[1].task))))
    task = xwinograd(data / "xwinograd" / "dataset.tsv", language)
    both = TaskPart(task, last_words(task, name))
    # Rows of one schema stand behind each other: the parts are two ends of the file, not a draw.
    first = min(development, len(task) // 3)
    return both.select(range(first)), both.select(range(first, min(first + test, len(task))))


def prompts_to_fit(data: Path, name: str, language: str, pairs: int) -> list[str]:
    """News sentences, ending as the task's prompts end."""
    file = NTREX[language] if language == "en" else f"newstest2019-ref.{NTREX[language]}.txt"
    sentences = [line.rstrip(' .。"”') for line in list(text_lines(data / "ntrex128" / file))[:pairs]]
    if name == "xwinograd":
        return sentences
    words = XCOPA_WORDS[language]
    return [f"{sentence} {words[i % 2]}" for i, sentence in enumerate(sentences)]


def adjusted(found: Tensor, counts: Tensor, prior: Tensor, score: str) -> Tensor:
    """Scores ``[V, n, K]`` under one of :data:`SCORES`."""
    return {"raw": found, "token": found / counts, "prior": found - prior}[score]


class Language:
    """One language: its states, its rows, and scores of variants."""

    def __init__(
        self, model: Any, tokenizer: Any, parts: tuple[TaskPart, TaskPart], states: tuple[HiddenStates, HiddenStates]
    ):
        self.model, self.tokenizer = model, tokenizer
        self.parts = parts
        self.states = states

    def maps(self, sites: Sequence[int], lam: float) -> Any:
        """Affine ridge maps."""
        x, y = ({site: side[site] for site in sites} for side in self.states)
        return fit_states(x, y, estimator="affine_ridge", lam=lam, progress=False)

    def controls(self, sites: Sequence[int], lam: float, seed: int) -> dict[str, Any]:
        """Name -> alignment."""
        x, y = ({site: side[site] for site in sites} for side in self.states)
        return fit_controls(x, y, lam=lam, seed=seed)

    def right(self, part: int, variants: Sequence[Variant], score: str | None = None) -> dict[str, Tensor]:
        """Score -> bool ``[V, n]``: whether the answer has the highest score."""
        rows = self.parts[part]
        found, counts = score_continuations(self.model, self.tokenizer, rows.task, variants)
        prior = 0.0 * found
        if score in (None, "prior"):
            prior, _ = score_continuations(self.model, self.tokenizer, rows.alone, [PLAIN])
        answers = torch.tensor(rows.task.answers)
        return {s: adjusted(found, counts, prior, s).argmax(-1) == answers for s in ((score,) if score else SCORES)}


@dataclass(frozen=True)
class Choice:
    """What the maps and every control are given, and how many settings of the maps were tried."""

    sites: tuple[int, ...]
    lam: float
    alpha: float
    strengths: dict[str, float]
    tried: int

    def __str__(self) -> str:
        where = f"site {self.sites[0]}" if len(self.sites) == 1 else f"sites {self.sites[0]}-{self.sites[-1]}"
        return f"affine_ridge, lambda {self.lam:g}, {where}, alpha {self.alpha:g}"


def choose(
    languages: Mapping[str, Language],
    candidates: Sequence[tuple[tuple[int, ...], float]],
    alphas: Sequence[float],
    seed: int,
) -> Choice:
    """By raw accuracy on the development rows of all languages together."""

    def pooled(maps: Mapping[str, Mapping[Any, Any]]) -> dict[tuple[Any, float], float]:
        """``maps``: language -> {key: alignment}."""
        keys = [(key, alpha) for key in next(iter(maps.values())) for alpha in alphas]
        right = [
            one.right(0, [Variant(str((key, alpha)), maps[name][key], alpha) for key, alpha in keys], "raw")["raw"]
            for name, one in languages.items()
        ]
        return dict(zip(keys, torch.cat(right, 1).float().mean(1).tolist(), strict=True))

    tried = pooled(
        {n: {(sites, lam): one.maps(sites, lam) for sites, lam in candidates} for n, one in languages.items()}
    )
    (sites, lam), alpha = max(tried, key=lambda key: tried[key])
    controls = pooled({name: one.controls(sites, lam, seed) for name, one in languages.items()})
    names = list(dict.fromkeys(name for name, _ in controls))
    strengths = {name: max(alphas, key=lambda a: controls[name, a]) for name in names}
    return Choice(sites, lam, alpha, strengths, len(tried))


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with xcopa, xwinograd and ntrex128")
    parser.add_argument("--task", choices=tuple(LANGUAGES), required=True)
    parser.add_argument("--model", default="smollm2", help="smollm2, gemma3 or a folder with a transformers model")
    parser.add_argument("--languages", help="those of the set that NTREX-128 has here, by default tr,sw or fr,ru")
    parser.add_argument("--pairs", type=int, default=200, help="sentences to fit")
    parser.add_argument("--development", type=int, default=50, help="rows of a language to choose on")
    parser.add_argument("--test", type=int, default=250, help="rows of a language to report on")
    parser.add_argument("--lams", default="1")
    parser.add_argument("--alphas", default="0.4,0.8")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    names = arguments.languages.split(",") if arguments.languages else LANGUAGES[arguments.task]
    prepared = prepare(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(prepared.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(prepared.model)
    count = identify(model).num_layers
    late = tuple(range(count - count // 4 + 1, count + 1))

    def states(language: str) -> HiddenStates:
        texts = prompts_to_fit(arguments.data, arguments.task, language, arguments.pairs)
        return collect(model, tokenizer, texts, layers=list(late))

    english = states("en")
    languages = {}
    for name in names:
        parts = read(arguments.data, arguments.task, name, arguments.development, arguments.test)
        languages[name] = Language(model, tokenizer, parts, (states(name), english))
    candidates = [(sites, float(lam)) for sites in ((count,), late) for lam in arguments.lams.split(",")]
    alphas = [float(alpha) for alpha in arguments.alphas.split(",")]
    choice = choose(languages, candidates, alphas, arguments.seed)

    right: dict[str, dict[str, Tensor]] = {}
    lines = ["plain", INCLINE, *choice.strengths]
    for name, one in languages.items():
        controls = one.controls(choice.sites, choice.lam, arguments.seed)
        variants = [PLAIN, Variant(INCLINE, one.maps(choice.sites, choice.lam), choice.alpha)]
        variants += [Variant(control, controls[control], strength) for control, strength in choice.strengths.items()]
        right[name] = one.right(1, variants)
    about = {
        "model": prepared.title,
        "task": arguments.task,
        "settings_tried": choice.tried,
        "pairs": arguments.pairs,
        "development_rows": sum(len(one.parts[0].task) for one in languages.values()),
        "seed": arguments.seed,
        "weights_hash": weights_hash(model),
        "torch": torch.__version__,
        "cpu": cpu_name(),
    }
    settings = {INCLINE: str(choice)} | {name: f"alpha {alpha:g}" for name, alpha in choice.strengths.items()}
    rows: list[dict[str, Any]] = []
    for score in SCORES:
        each = {name: found[score] for name, found in right.items()}
        # Rows of XCOPA are translations of each other: they are drawn together.
        ids = {name: list(one.parts[1].task.ids) for name, one in languages.items()}
        if arguments.task == "xwinograd":
            ids = {name: [f"{name} {row}" for row in several] for name, several in ids.items()}
        parts = {"all": (torch.cat(list(each.values()), 1), [row for several in ids.values() for row in several])}
        parts |= {name: (each[name], ids[name]) for name in each}
        for name, (correct, groups) in parts.items():
            hashes = ",".join(languages[n].parts[1].task.data_hash for n in (languages if name == "all" else [name]))
            key = about | {"language": name, "score": score, "data_hash": hashes}
            for number, line in enumerate(lines):
                result = result_row(correct[number], correct[0], None, groups, arguments.seed)
                del result["cpc"]
                rows.append(key | {"line": line, "setting": settings.get(line, "")} | result)
            best = max(range(2, len(lines)), key=lambda i: float(correct[i].float().mean()))
            over = paired_bootstrap(correct[1].float(), correct[best].float(), groups=groups, seed=arguments.seed)
            rows.append(
                key
                | {"line": "INCLINE over the best control", "setting": lines[best], "n": correct.shape[1]}
                | {"difference": round(over.mean, 4), "low": round(over.low, 4), "high": round(over.high, 4)}
            )
    write(arguments.output, rows, COLUMNS, ("model", "task", "language", "line", "score"))
    for row in rows:
        if row["language"] == "all":
            print(
                *(row.get(name, "") for name in ("score", "line", "accuracy", "difference", "low", "high", "setting"))
            )


if __name__ == "__main__":
    main()
