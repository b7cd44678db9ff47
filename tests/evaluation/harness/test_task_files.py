"""Every task file on made-up rows in the layout of its set: prompt, answers and score; and one run by the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import HIDDEN, LAYERS, tiny
from tiny_tokenizer import tiny_tokenizer
from typer.testing import CliRunner

from incline_fast import Alignment
from incline_fast.evaluation.tasks import TaskError

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install incline-fast[lm-eval]")

from lm_eval.tasks import TaskManager

from incline_fast.evaluation.harness.local_data import xcopa
from incline_fast.evaluation.harness.task_files import SETS, write_task_files

XCOPA = {"premise": "Piove.", "choice1": "Esco.", "choice2": "Resto.", "question": "effect", "label": 1, "idx": 4}
XCSQA = {
    "answerKey": "B",
    "question": {"stem": "Où ?", "choices": [{"label": "A", "text": "ici"}, {"label": "B", "text": "là"}]},
}
XWINOGRAD = [
    "fr", "o", "?", "La tasse ne tient pas dans le sac car elle est large.",
    json.dumps(["La", "tasse", "ne", "tient", "pas", "dans", "le", "sac", "car", "elle", "est", "large", "."]),
    json.dumps(["elle", [9, 10], ["elle"]]),
    json.dumps([["La tasse", [0, 2], [], True], ["le sac", [6, 8], [], False]]),
]  # fmt: skip
FILES = {
    "xcopa/it/val.it.jsonl": json.dumps(XCOPA),
    "xcopa/sw/test.sw.jsonl": json.dumps({**XCOPA, "premise": "w5 w6.", "choice1": "w7", "choice2": "w8"}),
    "xwinograd/dataset.tsv": "\t".join(XWINOGRAD),
    "mgsm/mgsm_fr.tsv": "Combien ?\t1,200",
    "xstorycloze/spring2016.val.es.tsv.split_20_80_eval.tsv": (
        "InputStoryid\tInputSentence1\tInputSentence2\tInputSentence3\tInputSentence4\t"
        "RandomFifthSentenceQuiz1\tRandomFifthSentenceQuiz2\tAnswerRightEnding\n"
        "7\tUno.\tDos.\tTres.\tCuatro.\tCinco.\tSeis.\t2"
    ),
    "xnli/xnli.test.tsv": "language\tgold_label\tsentence1\tsentence2\nfr\tneutral\tIl pleut.\tJe dors.",
    "xcsqa/dev-fr.jsonl": json.dumps(XCSQA),
    "flores101_dataset/devtest/zho_simpl.devtest": "你好",
    "flores101_dataset/devtest/eng.devtest": "Hello",
    "wmt23/generaltest2023.de-en.src.de": "Hallo",
    "wmt23/generaltest2023.de-en.ref.refA.en": "Hello",
    "mzsre/mzsre_test_cs.jsonl": json.dumps({"question": "Kdo?", "answer": "Jan Hus"}),
}
EXPECTED: dict[str, tuple[str, Any]] = {
    "incline_xcopa_it": (
        'Here is a premise: "Piove.". A: "Esco." B: "Resto." What is the effect? "A" or "B"?', (["A", "B"], 1)
    ),
    "incline_xwinograd_fr": (
        "La tasse ne tient pas dans le sac car _ est large.\n"
        "Replace the _ in the above sentence with the correct option:\n- La tasse\n- le sac",
        (["La tasse", "le sac"], 0),
    ),
    "incline_mgsm_fr": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request in "
        "French. Please answer in French.\n\n### Instruction:\nCombien ?\n\n### Response:",
        "1200",
    ),
    "incline_xstorycloze_es": (
        "Uno. Dos. Tres. Cuatro.\nWhat is a possible continuation for the story given the following options?\n"
        "A: Cinco. B:Seis.",
        (["A", "B"], 1),
    ),
    "incline_xnli_fr": (
        'Take the following as truth: Il pleut.\nThen the following statement: "Je dors." is "true", "false", or '
        '"inconclusive"?',
        (["true", "false", "inconclusive"], 2),
    ),
    "incline_xcsqa_fr": ("Question: Où ? A: ici B: là\nAnswer:", (["A", "B"], 1)),
    "incline_flores_zh": ("Translate the following sentence from Chinese to English: 你好\n", "Hello"),
    "incline_wmt23_de": ("German: Hallo\nEnglish:", "Hello"),
    "incline_mzsre_cs": ("Question: Kdo?\nAnswer:", "Jan Hus"),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def manager(data: Path, tmp_path_factory: pytest.TempPathFactory) -> TaskManager:
    folder = tmp_path_factory.mktemp("tasks")
    write_task_files(folder)
    return TaskManager(include_path=str(folder), include_defaults=False, metadata={"data": str(data)})


def loaded(manager: TaskManager, name: str) -> Any:
    return manager.load([name])["tasks"][name]


def test_every_set_has_its_languages(manager: TaskManager) -> None:
    names = {f"incline_{name}_{language}" for name, languages in SETS.items() for language in languages}
    assert set(manager.all_subtasks) == names
    assert set(manager.all_tags) == {f"incline_{name}" for name in SETS}


@pytest.mark.parametrize("name", EXPECTED)
def test_wording_and_answer(manager: TaskManager, name: str) -> None:
    task = loaded(manager, name)
    (row,) = list(task.test_docs())
    prompt, answer = EXPECTED[name]
    assert task.doc_to_text(row) == prompt
    if isinstance(answer, tuple):
        assert (task.doc_to_choice(row), task.doc_to_target(row)) == answer
    else:
        assert task.doc_to_target(row) == answer


@pytest.mark.parametrize(
    ("name", "said", "score"),
    [
        ("incline_mgsm_fr", "Il y en a 3, donc 1 200... 1,200", 1.0),
        ("incline_mgsm_fr", "1200 puis 3", 0.0),
        ("incline_mzsre_cs", " jan hus.", 1.0),
        ("incline_mzsre_cs", " Jan Nepomuk", 0.0),
    ],
)
def test_scores_of_answers(manager: TaskManager, name: str, said: str, score: float) -> None:
    task = loaded(manager, name)
    (row,) = list(task.test_docs())
    task.build_all_requests(rank=0, world_size=1)
    (request,) = task.instances
    request.resps = [said]
    task.apply_filters()
    (filtered,) = request.filtered_resps.values()
    assert task.process_results(row, [filtered])["exact_match"] == score


def test_no_folder_and_no_rows(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INCLINE_FAST_DATA", raising=False)
    with pytest.raises(TaskError, match="set INCLINE_FAST_DATA"):
        xcopa("it")
    monkeypatch.setenv("INCLINE_FAST_DATA", str(data))
    assert len(xcopa("it")["test"]) == 1
    with pytest.raises(FileNotFoundError):
        xcopa("tr")


def test_the_command(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from incline_fast.cli.app import app

    tiny("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    maps = {site: 0.1 * torch.eye(HIDDEN) for site in range(1, LAYERS + 1)}
    Alignment.from_maps(maps).save(tmp_path / "maps.safetensors")
    monkeypatch.setenv("INCLINE_FAST_DATA", str(data))
    monkeypatch.setattr("lm_eval.tasks.TaskManager.__init__", without_defaults(TaskManager.__init__))
    before = list(sys.argv)
    result = CliRunner().invoke(
        app,
        [
            "lm-eval", "--model", "incline", "--tasks", "incline_xcopa_sw", "--device", "cpu",
            "--model_args", f"pretrained={tmp_path}/model,alignment={tmp_path}/maps.safetensors,alpha=0.5",
            "--output_path", str(tmp_path / "out"),
        ],
        catch_exceptions=False,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert sys.argv == before
    (path,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(path.read_text())
    assert found["results"]["incline_xcopa_sw"]["acc,none"] in (0.0, 1.0)
    assert found["config"]["incline_alpha"] == 0.5


def without_defaults(plain: Any) -> Any:
    """Reading the harness's own thousands of task files takes longer than everything else here."""

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **{**kwargs, "include_defaults": False})

    return init
