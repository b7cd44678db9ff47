"""Shared prefixes, late starts and small heads give what whole forward passes give."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tiny_models import CONFIGS, HIDDEN, LAYERS, tiny
from tiny_tokenizer import WORDS, sentences, tiny_tokenizer
from torch import Tensor, nn

from incline_fast import Alignment, intervene
from incline_fast.models.architectures import describe
from incline_fast.models.label_head import head_of_tokens
from incline_fast.states import collect
from incline_fast.states.prompt_runner import NOTHING_SHARED, PromptRunner
from incline_fast.states.shared_prefix import SHORTEST, common_prefix

EXAMPLES = " ".join(WORDS[:20])
FEW_SHOT = EXAMPLES + " {sentence} w7 w8"


def maps(layers: Sequence[int] = range(1, LAYERS + 1)) -> Alignment:
    generator = torch.Generator().manual_seed(0)
    found = {site: 0.3 * torch.randn(HIDDEN, HIDDEN, generator=generator) for site in layers}
    bias = {site: torch.randn(HIDDEN, generator=generator) for site in layers}
    return Alignment.from_maps(found, bias=bias, form="interpolate")


def alone(name: str, ids: Sequence[Sequence[int]], alpha: float = 0.0, layers: Sequence[int] | None = None) -> Tensor:
    """Logits ``[n, V]`` of whole passes over one prompt each."""
    model = tiny(name)
    rows = []
    with torch.inference_mode(), intervene(model, maps(), alpha=alpha, layers=layers):
        for prompt in ids:
            rows.append(model(torch.tensor([list(prompt)])).logits[0, -1])
    return torch.stack(rows)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_late_start_equals_a_whole_pass(name: str) -> None:
    model = tiny(name)
    runner = PromptRunner(model, tiny_tokenizer())
    ids = runner.ids(sentences(4, seed=3, longest=4), "{sentence} w7 w8")
    with torch.inference_mode():
        for start in range(1, LAYERS + 1):
            batch = runner.prefill(ids, sites=[start], first_block=start)
            entering = batch.states[start].repeat_interleave(2, 0)
            strengths = torch.tensor([0.0, 0.4]).repeat(len(ids))
            with intervene(model, maps(), alpha=strengths, layers=range(start, LAYERS + 1)) as run:
                found = runner.step(batch, 2, run, start=start, states=entering).logits
            expected = alone(name, ids, 0.4, range(start, LAYERS + 1))
            torch.testing.assert_close(found[1::2], expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found[::2], alone(name, ids), rtol=1e-4, atol=1e-4)
            assert float((found[1::2] - found[::2]).abs().max()) > 1e-2
    assert all("forward" not in vars(module) for module in model.modules())


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "opt", "falcon-rw", "xglm"])
def test_a_shared_prefix_equals_whole_passes(name: str) -> None:
    model = tiny(name)
    runner = PromptRunner(model, tiny_tokenizer())
    ids = runner.ids(sentences(5, seed=3), FEW_SHOT)
    shared = runner.share(ids)
    assert len(shared) == 21  # BOS and the examples
    with torch.inference_mode():
        batch = runner.prefill(ids, shared)
        with intervene(model, maps(), alpha=0.3) as run:
            found = runner.step(batch, 1, run).logits
    torch.testing.assert_close(found, alone(name, ids, 0.3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_a_prefix_longer_than_a_sliding_window_is_not_shared(name: str) -> None:
    runner = PromptRunner(tiny(name), tiny_tokenizer())
    assert len(runner.share(runner.ids(sentences(5, seed=3), FEW_SHOT))) == 0


@pytest.mark.parametrize("window", [23, 26, 64])
def test_a_window_that_the_prompt_outgrows(window: int) -> None:
    model = tiny("gemma3", sliding_window=window)
    runner = PromptRunner(model, tiny_tokenizer())
    ids = runner.ids([" ".join(WORDS[i : i + 6]) for i in range(4)], FEW_SHOT)
    shared = runner.share(ids)
    assert len(shared) == 21
    with torch.inference_mode():
        found = runner.step(runner.prefill(ids, shared), 1).logits
        expected = torch.stack([model(torch.tensor([prompt])).logits[0, -1] for prompt in ids])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_collected_states_do_not_depend_on_the_shared_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, texts = tiny("llama"), tiny_tokenizer(), sentences(7, seed=4)
    calls: list[int] = []
    handle = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    shared = collect(model, tokenizer, texts, template=FEW_SHOT, progress=False)
    handle.remove()
    assert calls[0] == 21
    assert max(calls[1:]) <= 11  # a sentence and the two words after it
    monkeypatch.setattr("incline_fast.states.shared_prefix.SHORTEST", 1000)
    apart = collect(model, tokenizer, texts, template=FEW_SHOT, progress=False)
    for site, states in apart.items():
        torch.testing.assert_close(shared[site], states, rtol=1e-4, atol=1e-4)


def test_states_of_a_batch_are_those_of_collect() -> None:
    model, tokenizer, texts = tiny("llama"), tiny_tokenizer(), sentences(5, seed=4)
    collected = collect(model, tokenizer, texts, template=FEW_SHOT, progress=False)
    runner = PromptRunner(model, tokenizer)
    ids = runner.ids(texts, FEW_SHOT)
    with torch.inference_mode():
        batch = runner.prefill(ids, runner.share(ids), sites=range(LAYERS + 1))
    for site, states in collected.items():
        torch.testing.assert_close(batch.states[site], states, rtol=1e-4, atol=1e-4)


def test_common_prefix() -> None:
    beginning = list(range(SHORTEST))

    def after(*tokens: int) -> list[int]:
        return [*beginning, *tokens]

    assert common_prefix([after(1, 2), after(3), after(1, 2, 4)]) == SHORTEST
    assert common_prefix([after(), after(3)]) == 0  # the last token is never shared: one less than the limit
    assert common_prefix([after(1, 2), after(1, 2)]) == SHORTEST + 1
    assert common_prefix([[1], [1, 2]]) == 0


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere", "gpt2", "falcon-new"])
def test_a_small_head_gives_the_columns_of_the_large_one(name: str) -> None:
    model, tokens = tiny(name), [9, 4, 33]
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        whole = model(ids).logits
        with head_of_tokens(model, tokens):
            few = model(ids).logits
        again = model(ids).logits
    torch.testing.assert_close(few, whole[..., tokens])
    assert torch.equal(again, whole)


def adapted(model):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)).eval()


def quantised(model):
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def packed(model):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig(), lambda module, name: name == "lm_head")
    return model


def hooked(model):
    model.lm_head.register_forward_hook(lambda module, args, output: 2 * output)
    return model


def offloaded(model):
    accelerate = pytest.importorskip("accelerate")
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.parametrize("change", [adapted, quantised, packed, hooked, offloaded])
def test_heads_that_are_more_than_their_weight(change) -> None:
    model, tokens = change(tiny("llama")), [9, 4, 33]
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        whole = model(ids).logits
        with head_of_tokens(model, tokens):
            few = model(ids).logits
        assert torch.equal(model(ids).logits, whole)
    torch.testing.assert_close(few, whole[..., tokens])
    with pytest.raises(ValueError, match=r"token_ids is \[61\]"), head_of_tokens(model, [61]):
        pass


def test_errors() -> None:
    model = tiny("llama")
    runner = PromptRunner(model, tiny_tokenizer())
    ids = runner.ids(["w5 w6"], None)
    batch = runner.prefill(ids, NOTHING_SHARED, first_block=2)
    with pytest.raises(ValueError, match="kept for steps from site 2 on"):
        runner.step(batch, 1, start=1, states=torch.zeros(1, HIDDEN))
    with pytest.raises(ValueError, match="a late start needs its states"):
        runner.step(batch, 1, start=2)
    with pytest.raises(ValueError, match="has no LM head"):
        PromptRunner(model.model, tiny_tokenizer())
    with pytest.raises(ValueError, match=r"token_ids is \[61\]"), head_of_tokens(model, [61]):
        pass
    with pytest.raises(ValueError, match="has no LM head"), head_of_tokens(describe(model).backbone, [1]):
        pass
