"""What learning maps and applying them cost, time and peak memory side by side with the other ways.

    python -m benchmarks.cost states --data DIR --states FILE
    python -m benchmarks.cost learn --work min_norm --states FILE
    python -m benchmarks.cost learn-memory --work min_norm --states FILE
    PYTHONPATH=.:RIVALS python -m benchmarks.cost apply-memory

**learn** fits the maps of all blocks of Gemma 3 270M (18 sites, d = 640) from n = 500 pairs of states in fp32; what a
way converts is part of its time and memory. FILE has real states, which **states** writes: French and English news of
DIR/ntrex128 in the default template, through Gemma 3 270M. Without it they are made up as in benchmarks/solver.py.
``min_norm`` is least squares of minimum norm, the published recipe, whose code calls
``numpy.linalg.lstsq``; ``loo`` is ridge with one of 20 lambdas by leave-one-out, which is how this library chooses
lambda by default. Ways take turns as in benchmarks/ridge.py; each is timed only after its predictions for held-out
states agree with an SVD's. Repeated sentences are left out, or kept with ``--repeats``: one that occurs twice leaves
minimum norm a rank below n, where ``gels`` is wrong.

**apply-memory** is that of a prompt of 60 tokens and 8 generated tokens with a dense map at every block; the times of
the same ways are those of benchmarks/intervene.py. RIVALS is the folder into which benchmarks/rivals.txt was installed.

Memory is the peak of the resident memory above its value before the work, whose inputs (states, model, plain maps) and
imports are there already; median over fresh processes.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LinearRegression, RidgeCV
from threadpoolctl import threadpool_limits
from torch import Tensor

from benchmarks.peak_memory import in_fresh_process, peak_increase
from benchmarks.ridge import HELD_OUT, Case, measure
from benchmarks.sib200 import write
from benchmarks.solver import Site, absolute, fit_sites, made_up, real, torch_loo
from incline_fast.bench.machine import about
from incline_fast.solver.ridge import DEFAULT_LAMS, Ridge

RESULTS = Path(__file__).parent / "results"
SITES, ROWS, WIDTH = 18, 500, 640
PROMPT, NEW_TOKENS = "1x60", 8
OURS = "incline_fast"
RIVALS = ("pyvene", "nnsight", "steering-vectors")
APPLIED = ("plain", "hook", "ours", "twice", *RIVALS)
ALLOWED = 1e-3
"""Relative error of held-out predictions above which a way is wrong; what is below stands in the table."""

Learn = Callable[[list[Site]], list[Any]]
"""States of all sites -> per site a :class:`Ridge`, or W that acts as ``X @ W``."""


def site_by_site(solve: Callable[[Tensor, Tensor], Any]) -> Learn:
    """One site after the other, in fp64."""
    return lambda sites: [solve(X.double(), Y.double()) for X, Y in sites]


def ours(lam: Any) -> Learn:
    """As ``fit`` does it."""
    return lambda sites: fit_sites(sites, lam)


def lams(X: Tensor) -> list[float]:
    """The grid in scikit-learn's units."""
    return [absolute(X, lam) for lam in DEFAULT_LAMS]


WAYS: dict[str, dict[str, Learn]] = {
    "min_norm": {
        OURS: ours(0.0),
        "numpy.linalg.lstsq": site_by_site(lambda X, Y: np.linalg.lstsq(X.numpy(), Y.numpy(), rcond=None)[0]),
        "torch.linalg.lstsq gels": site_by_site(lambda X, Y: torch.linalg.lstsq(X, Y, driver="gels").solution),
        "torch.linalg.lstsq gelsy": site_by_site(lambda X, Y: torch.linalg.lstsq(X, Y, driver="gelsy").solution),
        "sklearn LinearRegression": site_by_site(
            lambda X, Y: LinearRegression(fit_intercept=False).fit(X.numpy(), Y.numpy()).coef_.T
        ),
    },
    "loo": {
        OURS: ours(DEFAULT_LAMS),
        "torch.linalg.eigh": site_by_site(lambda X, Y: torch_loo(X, Y, lams(X))),
        "sklearn RidgeCV": site_by_site(
            lambda X, Y: RidgeCV(lams(X), fit_intercept=False).fit(X.numpy(), Y.numpy()).coef_.T
        ),
    },
}


def real_states(arguments: argparse.Namespace) -> None:
    """Write states of French and English news for :func:`benchmarks.solver.real`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from demo.fetch import prepare
    from incline_fast.states import collect
    from incline_fast.text.lines import text_lines
    from incline_fast.text.prompts import DEFAULT_TEMPLATE

    folder = prepare(arguments.model).model
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    files = [arguments.data / "ntrex128" / f"newstest2019-{name}.txt" for name in ("ref.fra", "src.eng")]
    pairs = list(zip(*map(text_lines, files), strict=True))
    if not arguments.repeats:
        pairs = list({target: (source, target) for source, target in dict(pairs).items()}.values())
    texts = dict(zip("xy", zip(*pairs[: ROWS + HELD_OUT], strict=True), strict=True))
    found = {}
    for side in texts:
        states = collect(model, tokenizer, texts[side], template=DEFAULT_TEMPLATE, layers=range(1, SITES + 1))
        found |= {f"{side}.{site}": rows for site, rows in states.items()}
    save_file(found, arguments.states)


def read_sites(states: Path | None, rows: int) -> list[Site]:
    """The real or the made-up states of all sites."""
    return made_up(SITES, rows, WIDTH) if states is None else real(states, SITES, rows)


def memory_of_learning(work: str, way: str, states: Path | None, threads: int) -> float:
    """Peak memory of one way in this process, MiB."""
    torch.set_num_threads(threads)
    sites = [(X.clone(), Y.clone()) for X, Y in read_sites(states, ROWS)]
    with threadpool_limits(threads):
        WAYS[work][way]([(X[:8, :8].contiguous(), Y[:8, :8].contiguous()) for X, Y in sites[:1]])  # libraries loaded
        return peak_increase(lambda: WAYS[work][way](sites))


def by_svd(X: Tensor, Y: Tensor, lam: float, held_out: Tensor) -> np.ndarray:
    """Predictions for held-out rows; singular values below NumPy's limit count as zero."""
    U, S, Vh = torch.linalg.svd(X.double(), full_matrices=False)
    kept = S.gt(torch.finfo(S.dtype).eps * max(X.shape) * float(S[0]))
    shrunk = torch.where(kept, S / (S.square() + lam), 0.0)
    return ((held_out @ Vh.T) * shrunk @ (U.T @ Y.double())).numpy()


@dataclass(frozen=True)
class Problem:
    """All sites of a model, and what is right for states that were not fitted.

    Attributes:
        work: a key of :data:`WAYS`.
        sites: what is fitted.
        held_out: fp64 ``[HELD_OUT, d]`` of every site.
        expected: predictions for them, site by site.
    """

    work: str
    sites: list[Site]
    held_out: list[Tensor]
    expected: list[np.ndarray]

    @classmethod
    def of(cls, work: str, states: Path | None) -> Problem:
        """Real or made-up states; with leave-one-out, our choice of lambda is that of the SVD too."""
        data = read_sites(states, ROWS + HELD_OUT)
        sites = [(X[:ROWS].contiguous(), Y[:ROWS].contiguous()) for X, Y in data]
        held_out = [X[ROWS:].double() for X, _ in data]
        lams = [0.0] * len(sites)
        if work == "loo":
            lams = [absolute(X, one.lam_) for (X, _), one in zip(sites, WAYS[work][OURS](sites), strict=True)]
        expected = [by_svd(X, Y, lam, x) for (X, Y), lam, x in zip(sites, lams, held_out, strict=True)]
        return cls(work, sites, held_out, expected)

    def read(self, results: list[Any]) -> np.ndarray:
        """Predictions of as many sites as there are results."""
        both = zip(results, self.held_out, strict=False)
        return np.concatenate(
            [one.predict(x).numpy() if isinstance(one, Ridge) else x.numpy() @ np.asarray(one) for one, x in both]
        )

    def first_error(self, way: Learn) -> float:
        """Relative error of the first site's predictions."""
        return float(
            np.linalg.norm(self.read(way(self.sites[:1])) - self.expected[0]) / np.linalg.norm(self.expected[0])
        )


def learn(arguments: argparse.Namespace) -> None:
    """Time all ways in turn; those whose predictions are wrong are listed without a time."""
    work, rounds = arguments.work, arguments.rounds
    problem = Problem.of(work, arguments.states)
    with threadpool_limits(arguments.threads):  # of NumPy's library too
        errors = {name: problem.first_error(way) for name, way in WAYS[work].items()}
        right = {name: way for name, way in WAYS[work].items() if errors[name] <= ALLOWED}
        cases = [Case(name, lambda way=way: way(problem.sites), ALLOWED) for name, way in right.items()]
        rows = measure(work, cases, np.concatenate(problem.expected), problem.read, rounds)
    for name in errors.keys() - right:
        wrong = {"provider": name, "ms_p50": "", "ratio_to_first": "", "ms_p20": "", "ms_p80": ""}
        rows.append(rows[0] | wrong | {"held_out_error": f"{errors[name]:.1e}"})
    for row in rows:
        row |= {"states": kind_of(problem.sites, arguments.states), "sites": SITES, "n": ROWS, "d": WIDTH} | about()
        print(*(row[name] for name in ("provider", "ms_p50", "ratio_to_first", "held_out_error", "load")))
    write(RESULTS / "cost-learn.csv", rows, list(rows[0]), ("work", "states", "provider"))


def learn_memory(arguments: argparse.Namespace) -> None:
    """The memory of every way to learn."""
    work, states = arguments.work, arguments.states
    kind = kind_of([(X[:ROWS], Y[:ROWS]) for X, Y in read_sites(states, ROWS)], states)
    rows = [
        {"work": work, "provider": way, "states": kind}
        | peaks(arguments.processes, memory_of_learning, work, way, states, arguments.threads)
        for way in WAYS[work]
    ]
    write(RESULTS / "cost-learn-memory.csv", rows, list(rows[0]), ("work", "states", "provider"))


def kind_of(sites: list[Site], states: Path | None) -> str:
    """For the table: whether rows are real, and whether one occurs twice, which leaves minimum norm a lower rank."""
    X = sites[0][0]
    repeated = ", a sentence twice" if len(torch.unique(X, dim=0)) < len(X) else ""
    return ("made-up" if states is None else "real") + repeated


def peaks(processes: int, work: Callable[..., float], *arguments: Any) -> dict[str, Any]:
    """The median peak over fresh processes, and what was measured where."""
    found = [in_fresh_process(work, *arguments) for _ in range(processes)]
    print(*arguments, [round(peak, 1) for peak in found], flush=True)
    return {"peak_mib": round(statistics.median(found), 1), "processes": processes, **about()}


def applying(way: str, case: Any) -> Callable[[], Any]:
    """What generates with the maps; a library is imported before."""
    from benchmarks.intervene import ALPHA, hooked, twice
    from benchmarks.rivals import MAKERS

    if way in RIVALS:
        importlib.import_module(way.replace("-", "_"))
        return lambda: MAKERS[way](case.model, case.transposed, ALPHA)(case.inputs, NEW_TOKENS)
    blocks = {
        "plain": nullcontext,
        "hook": lambda: hooked(case.model, case.transposed),
        "ours": case.edited,
        "twice": lambda: twice(case.model, case.transposed, case.inputs),
    }

    def run() -> Any:
        with blocks[way]():
            return case.generate(NEW_TOKENS)

    return run


def memory_of_applying(way: str, threads: int) -> float:
    """Peak memory of one way in this process, MiB; the plain model has generated before."""
    from benchmarks.intervene import Case as Decoding
    from benchmarks.intervene import random_gemma

    torch.set_num_threads(threads)
    with torch.inference_mode():
        case = Decoding.of(random_gemma(), PROMPT)
        run = applying(way, case)
        case.generate(NEW_TOKENS)
        return peak_increase(run)


def apply_memory(arguments: argparse.Namespace) -> None:
    """The memory of every way to apply, written as it is measured."""
    for way in arguments.ways.split(","):
        about_it = {"way": way, "prompt": PROMPT, "new_tokens": NEW_TOKENS}
        row = about_it | peaks(arguments.processes, memory_of_applying, way, arguments.threads)
        write(RESULTS / "cost-apply-memory.csv", [row], list(row), ("way",))


PARTS = {"states": real_states, "learn": learn, "learn-memory": learn_memory, "apply-memory": apply_memory}


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=tuple(PARTS))
    parser.add_argument("--work", choices=tuple(WAYS), default="min_norm")
    parser.add_argument("--states", type=Path, help="safetensors file of real states: x.SITE and y.SITE, [rows, width]")
    parser.add_argument("--data", type=Path, help="folder with ntrex128, of which `states` takes the sentences")
    parser.add_argument("--model", default="gemma3", help="through which `states` runs them")
    parser.add_argument("--repeats", action="store_true", help="`states` keeps sentences that occur twice")
    parser.add_argument("--ways", default=",".join(APPLIED), help="whose memory `apply-memory` measures")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=3, help="fresh ones for each way's memory")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    PARTS[arguments.part](arguments)


if __name__ == "__main__":
    main()
