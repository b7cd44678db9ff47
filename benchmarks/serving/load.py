"""Does a server last? ``python -m benchmarks.serving.load``: concurrent requests while maps come and go.

Clients send plain and edited prompts in several languages, and now and then a bad request, as fast as they are
answered. Meanwhile one more client loads and unloads a map. An error is any answer but the expected one. Plain prompts
are asked over and over and have to get the same text and log-probabilities as alone; memory is read all the time.
"""

from __future__ import annotations

import argparse
import itertools
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.serving.results import add_lines
from benchmarks.serving.server import Server, serve
from benchmarks.serving.workload import fetched, synthetic_maps
from incline_fast.bench.machine import commit, cpu_name

__all__ = ["LoadReport", "run"]

PROMPTS = {
    "en": "The password is too short.\nThe topic of this text is",
    "fr": "Le mot de passe est trop court.\nThe topic of this text is",
    "de": "Das Passwort ist zu kurz.\nThe topic of this text is",
    "tr": "Parola çok kısa.\nThe topic of this text is",
    "es": "La contraseña es demasiado corta.\nThe topic of this text is",
}
BAD = ({"incline": "nowhere"}, {"incline": "fr-en", "incline_alpha": 9}, {"incline_beta": 1})
TOLERANCE = 1e-3
"""Of a plain prompt's log-probabilities beside other requests: the products of a larger batch are summed otherwise."""


@dataclass
class LoadReport:
    """What happened.

    Attributes:
        seconds, concurrent: how long and how many clients.
        answered: requests per language.
        refused: bad requests, each answered with 400.
        loads: times that a map was loaded and unloaded.
        gone: requests for that map while it was not there, each answered with 400.
        plain_changed: plain prompts whose text changed, or whose log-probabilities moved by more than 1e-3.
        plain_moved: largest difference of a plain prompt's log-probability.
        memory_early, memory_late: resident bytes after a tenth of the time and at the end.
        errors: unexpected answers.
    """

    seconds: float
    concurrent: int
    answered: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    loads: int = 0
    gone: int = 0
    plain_changed: int = 0
    plain_moved: float = 0.0
    memory_early: int = 0
    memory_late: int = 0
    errors: list[str] = field(default_factory=list)


class _Load:
    def __init__(self, server: Server, seconds: float, concurrent: int, prompts: Mapping[str, str]) -> None:
        self.server = server
        self.prompts = prompts
        self.report = LoadReport(seconds, concurrent)
        self.lock = threading.Lock()
        self.until = time.monotonic() + seconds
        self.expected = {language: self._plain(prompt) for language, prompt in prompts.items()}

    def _plain(self, prompt: str) -> tuple[str, list[float]]:
        return _told(self.server.complete(prompt, logprobs=0))

    def running(self) -> bool:
        return time.monotonic() < self.until

    def fail(self, message: str) -> None:
        with self.lock:
            self.report.errors.append(message)

    def client(self, number: int) -> None:
        dice = random.Random(number)
        for turn in itertools.count():
            if not self.running():
                return
            language = list(self.prompts)[(number + turn) % len(self.prompts)]
            try:
                self._one(dice, language)
            except httpx.HTTPError as error:
                self.fail(f"{type(error).__name__}: {error}")

    def _one(self, dice: random.Random, language: str) -> None:
        prompt, chance = self.prompts[language], dice.random()
        if chance < 0.1:
            refused = self.server.complete(prompt, vllm_xargs=dict(dice.choice(BAD)))
            with self.lock:
                self.report.refused += refused.status_code == 400
            if refused.status_code != 400:
                self.fail(f"a bad request got {refused.status_code}: {refused.text[:200]}")
        elif chance < 0.2:
            answer = self.server.complete(prompt, "extra")
            with self.lock:
                self.report.gone += answer.status_code == 400
            if answer.status_code not in (200, 400):
                self.fail(f"a map that comes and goes: {answer.status_code}: {answer.text[:200]}")
        elif chance < 0.5 or language in ("en", "es"):
            self._check_plain(language, self.server.complete(prompt, logprobs=0))
        else:
            self._count(language, self.server.complete(prompt, f"{language}-en"))

    def _count(self, language: str, answer: httpx.Response) -> bool:
        if answer.status_code != 200:
            self.fail(f"{language}: {answer.status_code}: {answer.text[:200]}")
            return False
        with self.lock:
            self.report.answered[language] += 1
        return True

    def _check_plain(self, language: str, answer: httpx.Response) -> None:
        if not self._count(language, answer):
            return
        text, scores = _told(answer)
        expected_text, expected_scores = self.expected[language]
        moved = max(abs(a - b) for a, b in zip(scores, expected_scores, strict=False))
        with self.lock:
            self.report.plain_moved = max(self.report.plain_moved, moved)
            self.report.plain_changed += text != expected_text or moved > TOLERANCE

    def operator(self) -> None:
        url = f"{self.server.url}/v1/incline"
        files = itertools.cycle(["fr-en.safetensors", "de-en.safetensors", "tr-en.safetensors"])
        while self.running():
            loaded = httpx.post(url, json={"name": "extra", "path": next(files)}, timeout=300)
            time.sleep(0.5)
            gone = httpx.delete(f"{url}/extra", timeout=300)
            if (loaded.status_code, gone.status_code) != (200, 200):
                self.fail(f"loading: {loaded.status_code}, unloading: {gone.status_code}: {loaded.text[:200]}")
            self.report.loads += 1
            time.sleep(0.5)

    def watch(self) -> None:
        time.sleep(self.report.seconds / 10)
        self.report.memory_early = self.server.memory()
        while self.running():
            time.sleep(1)
        self.report.memory_late = self.server.memory()


def _told(answer: httpx.Response) -> tuple[str, list[float]]:
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice["text"], choice["logprobs"]["token_logprobs"]


def run(server: Server, seconds: float, concurrent: int, prompts: Mapping[str, str] = PROMPTS) -> LoadReport:
    """Load a server, which has the maps fr-en, de-en and tr-en, for a while.

    Args:
        server: to be loaded.
        seconds: how long.
        concurrent: clients.
        prompts: by language, those of :data:`PROMPTS`.
    """
    load = _Load(server, seconds, concurrent, prompts)
    threads = [threading.Thread(target=load.client, args=(number,)) for number in range(concurrent)]
    threads += [threading.Thread(target=load.operator), threading.Thread(target=load.watch)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return load.report


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a model of the demo, or a folder")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--concurrent", type=int, default=32)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("-o", "--output", type=Path, help="CSV file that the report is added to")
    given = parser.parse_args()
    folder, _ = fetched(given.model)
    with tempfile.TemporaryDirectory() as temporary:
        maps = synthetic_maps(folder, Path(temporary) / "maps")
        eager = ["--enforce-eager"] if given.eager else []
        with serve(folder, maps, Path(temporary) / "server.log", *eager) as server:
            report = run(server, given.seconds, given.concurrent)
            alive = server.alive()
    row = {"model": given.model, "compiled": not given.eager, "alive": alive, **asdict(report)}
    row["answered"] = " ".join(f"{language}:{count}" for language, count in sorted(report.answered.items()))
    row |= {"errors": len(report.errors), "cpu": cpu_name(), "commit": commit()}
    print(*(f"{key}: {value}" for key, value in row.items()), *report.errors[:10], sep="\n")
    if given.output is not None:
        add_lines([row], ("model", "compiled", "concurrent"), given.output)
    raise SystemExit(0 if alive and not report.errors and not report.plain_changed else 1)


if __name__ == "__main__":
    main()
