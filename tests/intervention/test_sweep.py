"""The sweep: the shared prefix changes nothing, blow-ups are reported, and alpha is chosen as it says."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from tiny_models import HIDDEN, LAYERS, tiny
from tiny_tokenizer import sentences, tiny_tokenizer
from torch import Tensor

from incline_fast import Alignment, AlignmentError, intervene
from incline_fast.intervention.sweep import compare, divergence, sweep
from incline_fast.intervention.sweep_result import SweepResult

TEMPLATE = "{sentence} w7 w8"


def alignment(seed: int = 0, scale: float = 0.3, form: str = "interpolate") -> Alignment:
    generator = torch.Generator().manual_seed(seed)
    maps = {site: scale * torch.randn(HIDDEN, HIDDEN, generator=generator) for site in range(1, LAYERS + 1)}
    bias = {site: torch.randn(HIDDEN, generator=generator) for site in maps}
    return Alignment.from_maps(maps, bias=bias, form=form)  # type: ignore[arg-type]


def one_by_one(name: str, alphas: list[float], source: list[str], target: list[str], maps: Alignment) -> Tensor:
    """``[A, n]``: every prompt and alpha in its own forward pass over the whole prompt."""
    model, tokenizer = tiny(name), tiny_tokenizer()

    def next_token(sentence: str) -> Tensor:
        ids = tokenizer(TEMPLATE.replace("{sentence}", sentence), return_tensors="pt").input_ids
        with torch.inference_mode():
            return model(ids).logits[0, -1].log_softmax(-1)

    kl = torch.empty(len(alphas), len(source))
    for a, alpha in enumerate(alphas):
        for i, (s, t) in enumerate(zip(source, target, strict=True)):
            wanted = next_token(t)
            with intervene(model, maps, alpha=alpha):
                found = next_token(s)
            kl[a, i] = torch.nn.functional.kl_div(found, wanted, log_target=True, reduction="sum")
    return kl


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "bloom", "opt", "falcon-7b", "olmo2"])
def test_equals_one_run_per_alpha_and_prompt(name: str) -> None:
    source, target, alphas = sentences(9, seed=1), sentences(9, seed=2), [-0.2, 0.0, 0.1, 0.5]
    result = sweep(
        tiny(name), tiny_tokenizer(), alignment(), source, target, alphas=alphas, template=TEMPLATE, progress=False
    )
    assert result.alphas == alphas
    expected = one_by_one(name, alphas, source, target, alignment())
    assert result.kl[0].std() > 1e-3
    torch.testing.assert_close(result.kl, expected, rtol=1e-4, atol=1e-5)


def test_batching_changes_nothing() -> None:
    # Without BOS: prompts of a single token among them.
    source, target = sentences(12, seed=1), sentences(12, seed=2)
    assert {1, 2} <= {len(sentence.split()) for sentence in source}
    arguments = tiny("llama"), tiny_tokenizer(bos=False), alignment(), source, target
    small = sweep(*arguments, batch_rows=1, progress=False)
    large = sweep(*arguments, batch_rows=1000, progress=False)
    torch.testing.assert_close(small.kl, large.kl, rtol=1e-4, atol=1e-5)


def test_pairs_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = tiny("llama"), tiny_tokenizer(), alignment(), sentences(12, seed=1), sentences(12, seed=2)
    whole = sweep(*arguments, progress=False)
    monkeypatch.setattr("incline_fast.intervention.sweep._PAIRS_AT_ONCE", 5)
    torch.testing.assert_close(sweep(*arguments, progress=False).kl, whole.kl, rtol=1e-4, atol=1e-5)


def test_prompts_of_one_token_and_an_added_eos() -> None:
    tokenizer = tiny_tokenizer(bos=False, eos=True)
    model, maps = tiny("llama"), alignment()
    result = sweep(model, tokenizer, maps, ["w5"], ["w6"], alphas=[0.4], progress=False)
    with torch.inference_mode():
        wanted = model(torch.tensor([[6]])).logits[0, -1].log_softmax(-1)
        with intervene(model, maps, alpha=0.4):
            found = model(torch.tensor([[5]])).logits[:, -1]
    torch.testing.assert_close(result.kl[1], divergence(wanted, found), rtol=1e-4, atol=1e-5)


def test_compare_equals_single_sweeps_and_leaves_the_model_alone() -> None:
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    source, target = sentences(6, seed=1), sentences(6, seed=2)
    both = compare(model, tokenizer, {"a": alignment(0), "b": alignment(1, form="add")}, source, target, progress=False)
    for name, maps in (("a", alignment(0)), ("b", alignment(1, form="add"))):
        alone = sweep(tiny("llama"), tokenizer, maps, source, target, progress=False)
        torch.testing.assert_close(both[name].kl, alone.kl, rtol=1e-4, atol=1e-5)
    assert not torch.equal(both["a"].kl, both["b"].kl)
    grids = {"a": [0.5], "b": [0.1, 0.2]}
    own = compare(
        model, tokenizer, {"a": alignment(0), "b": alignment(1)}, source, target, alphas=grids, progress=False
    )
    assert {name: result.alphas for name, result in own.items()} == {"a": [0.0, 0.5], "b": [0.0, 0.1, 0.2]}
    torch.testing.assert_close(own["a"].kl[1], both["a"].kl[both["a"].index(0.5)], rtol=1e-4, atol=1e-5)


def test_layers_and_the_template_of_the_alignment() -> None:
    model, tokenizer, maps = tiny("llama"), tiny_tokenizer(), alignment()
    source, target = sentences(5, seed=1), sentences(5, seed=2)
    one = sweep(model, tokenizer, maps, source, target, layers=[2], template=TEMPLATE, progress=False)
    only = Alignment.from_maps({2: maps.maps[2]}, bias={2: maps.bias[2]}, form="interpolate")
    only = only.with_metadata(template=TEMPLATE)
    torch.testing.assert_close(one.kl, sweep(model, tokenizer, only, source, target, progress=False).kl)


def test_blow_ups_are_reported_and_never_chosen() -> None:
    identity = {site: torch.eye(HIDDEN) * 30 for site in range(1, LAYERS + 1)}
    maps = Alignment.from_maps(identity, form="add")
    source, target = sentences(6, seed=1), sentences(6, seed=2)
    arguments = tiny("llama"), tiny_tokenizer(), maps, source, target
    result = sweep(*arguments, alphas=[0.001, 1.0, 1e30], progress=False)
    assert result.blown_up == [1.0, 1e30]
    assert result.best_alpha in (0.0, 0.001)
    assert math.isinf(result.mean[-1])
    assert "BLEW UP" in result.table()


def test_finds_the_alpha_that_undoes_a_shift() -> None:
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    source = sentences(8, seed=1)
    # At the last site, a map that predicts the state of the target prompt exactly: there is one target for all.
    states: list[Tensor] = []
    with torch.inference_mode():
        handle = model.model.norm.register_forward_pre_hook(lambda module, args: states.append(args[0][0, -1].clone()))
        model(tokenizer("w9 w10", return_tensors="pt").input_ids)
        handle.remove()
    maps = Alignment.from_maps({LAYERS: torch.zeros(HIDDEN, HIDDEN)}, bias={LAYERS: states[0]}, form="interpolate")
    result = sweep(model, tokenizer, maps, source, ["w9 w10"] * 8, progress=False)
    assert result.best_alpha == 1.0
    assert result.mean[-1] < 1e-5 < result.mean[0]


class TestErrors:
    def test_arguments(self) -> None:
        model, tokenizer, maps = tiny("llama"), tiny_tokenizer(), alignment()
        with pytest.raises(ValueError, match="source has 1 sentences, target 2"):
            sweep(model, tokenizer, maps, ["w5"], ["w5", "w6"])
        with pytest.raises(ValueError, match="no strength other than 0"):
            sweep(model, tokenizer, maps, ["w5"], ["w6"], alphas=[0.0])
        with pytest.raises(ValueError, match="batch_rows is 0"):
            sweep(model, tokenizer, maps, ["w5"], ["w6"], batch_rows=0)
        with pytest.raises(ValueError, match="alignments is empty"):
            compare(model, tokenizer, {}, ["w5"], ["w6"])
        with pytest.raises(ValueError, match="LlamaModel has no LM head"):
            sweep(model.model, tokenizer, maps, ["w5"], ["w6"])

    def test_another_models_alignment(self) -> None:
        wrong = Alignment.from_maps({1: torch.eye(HIDDEN + 1)})
        with pytest.raises(AlignmentError):
            sweep(tiny("llama"), tiny_tokenizer(), wrong, ["w5"], ["w6"])


class TestResult:
    kl = torch.tensor([[1.0, 2.0, 3.0], [0.5, 1.0, 1.5], [2.0, 2.0, 2.0]])
    result = SweepResult([0.0, 0.2, 0.4], kl, torch.ones(3, 3))

    def test_changes_and_best(self) -> None:
        assert self.result.change == pytest.approx([0, -0.5, 0])
        assert self.result.best_alpha == 0.2
        assert self.result.interval(0.2) == pytest.approx((-0.5, -0.5))

    def test_interval_matches_a_normal_approximation(self) -> None:
        generator = torch.Generator().manual_seed(0)
        plain = torch.full((400,), 2.0)
        edited = 1 + 0.5 * torch.randn(400, generator=generator)
        low, high = SweepResult([0.0, 1.0], torch.stack([plain, edited]), torch.ones(2, 400)).interval(1.0)
        half = 1.96 * float(edited.std()) / 20 / 2
        assert (high - low) / 2 == pytest.approx(half, rel=0.1)
        assert (high + low) / 2 == pytest.approx(float(edited.mean()) / 2 - 1, abs=half / 5)

    def test_unmeasured_alpha(self) -> None:
        with pytest.raises(ValueError, match=r"alpha 0\.3 was not measured"):
            self.result.interval(0.3)

    def test_files(self, tmp_path: Path) -> None:
        self.result.to_csv(tmp_path / "sweep.csv")
        with (tmp_path / "sweep.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [float(row["alpha"]) for row in rows] == [0.0, 0.2, 0.4]
        assert float(rows[1]["change"]) == pytest.approx(-0.5)
        self.result.plot(tmp_path / "sweep.png", title="test")
        assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
        self.result.plot(tmp_path / "sweep.svg")
        assert "<svg" in (tmp_path / "sweep.svg").read_text()
