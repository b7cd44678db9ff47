"""Hidden states against the model's own report, one sentence at a time, and what can go wrong in collecting."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import HIDDEN, LAYERS, PAD, tiny
from tiny_tokenizer import sentences, tiny_tokenizer

from incline_fast.alignment.alignment import Alignment
from incline_fast.intervention.intervene import intervene
from incline_fast.states import hidden_states as states_module
from incline_fast.states.hidden_states import StatesError, collect
from incline_fast.text.prompts import PromptError

NAMES = ["llama", "gemma3", "gpt2", "opt", "olmo2"]
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def run(model, tokenizer, texts, **options):
    return collect(model, tokenizer, texts, progress=False, **options)


def reported(model, ids: list[int]) -> dict[int, torch.Tensor]:
    """``{site: [T, d]}`` of one unpadded text: what the model reports, and the last block's output from a hook.

    The last reported state is taken after the final norm, which is why site L needs the hook.
    """
    seen = []
    block = next(m for n, m in model.named_modules() if n.endswith((f"layers.{LAYERS - 1}", f"h.{LAYERS - 1}")))
    handle = block.register_forward_hook(lambda m, args, out: seen.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    handle.remove()
    return {**{site: hidden[site][0] for site in range(LAYERS)}, LAYERS: seen[0].reshape(len(ids), HIDDEN)}


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("name", NAMES)
def test_states_are_those_that_the_model_reports(name, pooling):
    model, tokenizer, texts = tiny(name), tiny_tokenizer(), sentences(13)
    collected = run(model, tokenizer, texts, pooling=pooling, batch_tokens=40)
    assert sorted(collected) == list(range(LAYERS + 1))
    for row, text in enumerate(texts):
        expected = reported(model, tokenizer(text)["input_ids"])
        for site, states in collected.items():
            tokens = expected[site][1:]  # without BOS
            torch.testing.assert_close(states[row], tokens[-1] if pooling == "last" else tokens.mean(0), **TOLERANCE)
            assert states.dtype == torch.float32
            assert states.shape == (13, HIDDEN)


@pytest.mark.parametrize("name", NAMES)
def test_the_last_site_is_not_normalised(name):
    """The final norm changes the state, so a collector that reads ``hidden_states[-1]`` fails here."""
    model, tokenizer, texts = tiny(name), tiny_tokenizer(), sentences(5)
    last = run(model, tokenizer, texts)[LAYERS]
    for row, text in enumerate(texts):
        with torch.no_grad():
            hidden = model(torch.tensor([tokenizer(text)["input_ids"]]), output_hidden_states=True).hidden_states
        assert (last[row] - hidden[-1][0, -1]).abs().max() > 0.1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_one_by_one_equals_batched_in_input_order(name, pooling):
    model, tokenizer, texts = tiny(name), tiny_tokenizer(), sentences(17)
    batched = run(model, tokenizer, texts, pooling=pooling)
    for row, text in enumerate(texts):
        alone = run(model, tokenizer, [text], pooling=pooling)
        for site in alone:
            torch.testing.assert_close(batched[site][row], alone[site][0], **TOLERANCE)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_states_equal_those_of_a_padded_batch_on_either_side(name, side):
    """What a user would compute by hand with the tokenizer's padding, position ids included."""
    model, tokenizer, texts = tiny(name), tiny_tokenizer(side=side), sentences(9)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    mask = batch["attention_mask"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        out = model(batch["input_ids"], attention_mask=mask, position_ids=positions, output_hidden_states=True)
    last = mask.shape[1] - 1 if side == "left" else mask.sum(1) - 1
    collected = run(model, tokenizer, texts)
    for site in range(LAYERS):
        expected = out.hidden_states[site][torch.arange(len(texts)), last]
        torch.testing.assert_close(collected[site], expected, **TOLERANCE)
    assert tokenizer.padding_side == side


def test_one_token_sentence_and_batch_of_one():
    model, tokenizer = tiny("llama"), tiny_tokenizer(bos=False)
    collected = run(model, tokenizer, ["w7"])
    torch.testing.assert_close(collected[0][0], model.model.embed_tokens.weight[7])


def test_template_surrounds_the_sentence_and_other_braces_are_text():
    model, tokenizer, texts = tiny("llama"), tiny_tokenizer(), sentences(4)
    framed = run(model, tokenizer, texts, template="w5 {sentence} w6 {w7}")
    by_hand = run(model, tokenizer, [f"w5 {text} w6 {{w7}}" for text in texts])
    bare = run(model, tokenizer, texts)
    for site in range(1, LAYERS + 1):
        assert torch.equal(framed[site], by_hand[site])
        assert (framed[site] - bare[site]).abs().max() > 1e-2
    placeholder = run(model, tokenizer, texts, template="{sentence}")
    assert all(torch.equal(placeholder[site], bare[site]) for site in bare)


@pytest.mark.parametrize("template", ["no place", "", "{sentence} {sentence}", "{Sentence}", "{ sentence }"])
def test_template_needs_exactly_one_place(template):
    with pytest.raises(ValueError, match=r"expected exactly one"):
        run(tiny("llama"), tiny_tokenizer(), ["w5"], template=template)


def test_special_tokens_are_not_pooled():
    """BOS and an appended EOS are there for the model, but neither is a token of the sentence."""
    model, texts = tiny("llama"), ["w5 w6", "w9"]
    for pooling in ("last", "mean"):
        # A causal model's states do not see the EOS that follows.
        with_eos = run(model, tiny_tokenizer(eos=True), texts, pooling=pooling)
        without = run(model, tiny_tokenizer(), texts, pooling=pooling)
        for site in without:
            torch.testing.assert_close(with_eos[site], without[site], **TOLERANCE)


def test_bos_written_in_the_text_is_bos():
    model, texts = tiny("llama"), ["w5 w6", "w9"]
    written = run(model, tiny_tokenizer(bos=False), [f"<s> {text}" for text in texts], pooling="mean")
    added = run(model, tiny_tokenizer(), texts, pooling="mean")
    for site in added:
        torch.testing.assert_close(written[site], added[site], **TOLERANCE)
    with pytest.raises(PromptError, match="sentence 1 has no real token"):
        run(model, tiny_tokenizer(), ["w5", "<s>"])


def test_special_tokens_at_the_end_of_a_template_are_real():
    """A prompt may end in a control token; that is where generation starts, so its state is the one to fit."""
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    collected = run(model, tokenizer, ["w5"], template="{sentence} </s>")
    expected = reported(model, tokenizer("w5 </s>")["input_ids"])
    torch.testing.assert_close(collected[LAYERS][0], expected[LAYERS][-1], **TOLERANCE)


def test_tokenizer_without_pad_token():
    model, texts = tiny("gpt2"), sentences(9)
    tokenizer = tiny_tokenizer(pad=False)
    assert tokenizer.pad_token is None
    padded, bare = run(model, tiny_tokenizer(), texts), run(model, tokenizer, texts)
    assert all(torch.equal(padded[site], bare[site]) for site in padded)
    assert tokenizer.pad_token is None


@pytest.mark.parametrize("layers", [[2], [3, 0, 3]])
def test_layers(layers):
    model, tokenizer, texts = tiny("llama"), tiny_tokenizer(), sentences(5)
    some, every = run(model, tokenizer, texts, layers=layers), run(model, tokenizer, texts)
    assert list(some) == sorted(set(layers))
    assert all(torch.equal(some[site], every[site]) for site in some)


def test_batches_stay_within_the_budget_and_start_with_the_longest():
    model, tokenizer, texts = tiny("llama"), tiny_tokenizer(), sentences(30)
    shapes = []
    handle = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    run(model, tokenizer, texts, batch_tokens=24)
    handle.remove()
    assert sum(rows for rows, _ in shapes) == 30
    assert all(rows * width <= 24 for rows, width in shapes)
    widths = [width for _, width in shapes]
    assert widths == sorted(widths, reverse=True)
    shapes.clear()
    assert run(model, tokenizer, texts, batch_tokens=1)[0].shape == (30, HIDDEN)


def test_the_head_is_not_computed():
    model = tiny("llama")
    model.lm_head.register_forward_hook(lambda *_: pytest.fail("the LM head ran"))
    run(model, tiny_tokenizer(), sentences(3))


def snapshot(model):
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    return [m.training for m in model.modules()], hooks


def test_model_is_left_as_it_was():
    model, tokenizer = tiny("gpt2"), tiny_tokenizer(side="left")
    reference = run(model, tokenizer, sentences(3))
    model.train()
    model.transformer.h[1].eval()
    before = snapshot(model)
    collected = run(model, tokenizer, sentences(3))
    assert snapshot(model) == before
    # GPT-2's dropout is 0.1: collecting in training mode would not repeat the states.
    assert all(torch.equal(collected[site], reference[site]) for site in reference)
    with pytest.raises(PromptError):
        run(model, tokenizer, ["w5", " "])
    model.get_input_embeddings().weight[7] = float("nan")
    with pytest.raises(StatesError):
        run(model, tokenizer, ["w7"])
    assert snapshot(model) == before


@pytest.mark.parametrize("empty", ["", "  ", "\n\t"])
def test_empty_sentence_names_its_index(empty):
    with pytest.raises(PromptError, match="sentence 2 is empty"):
        run(tiny("llama"), tiny_tokenizer(), ["w5", "w6", empty], template="{sentence} w9")


def test_bad_arguments_are_named():
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    with pytest.raises(TypeError, match="sentences is a str"):
        run(model, tokenizer, "w5")
    with pytest.raises(TypeError, match="sentence 1 is None, a NoneType"):
        run(model, tokenizer, ["w5", None])
    with pytest.raises(ValueError, match="sentences is empty"):
        run(model, tokenizer, [])
    with pytest.raises(PromptError, match="sentence 0 is not valid Unicode"):
        run(model, tokenizer, ["\ud800"])
    with pytest.raises(ValueError, match="pooling is 'max'; allowed: last, mean"):
        run(model, tokenizer, ["w5"], pooling="max")
    with pytest.raises(ValueError, match="batch_tokens is 0"):
        run(model, tokenizer, ["w5"], batch_tokens=0)
    for layers in ([LAYERS + 1], [-1], []):
        with pytest.raises(ValueError, match="allowed: sites 0"):
            run(model, tokenizer, ["w5"], layers=layers)
    with pytest.raises(PromptError, match="sentence 1 has 71 tokens; the model takes 64"):
        run(model, tokenizer, ["w5", "w5 " * 70])
    with pytest.raises(PromptError, match="token id 60, the model has 50 embeddings"):
        run(tiny("llama", vocab_size=50), tokenizer, ["w60"])


def test_states_that_are_not_finite_name_sentence_and_site():
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    model.model.layers[1].mlp.down_proj.weight.fill_(3e38)
    with pytest.raises(StatesError, match=r"sentence 0 at site 2 is not finite$"):
        run(model, tokenizer, ["w5"])


def test_float16_overflow_says_so():
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    model.model.layers[0].mlp.down_proj.weight.mul_(3e4)
    assert run(model, tokenizer, ["w5"])[LAYERS].isfinite().all()
    with pytest.raises(StatesError, match=r"at site 1 is not finite; the model runs in float16, which ends at 65504"):
        run(model.half(), tokenizer, ["w5"])


def test_low_precision_models_give_fp32_means():
    model, tokenizer, texts = tiny("llama"), tiny_tokenizer(), sentences(6)
    reference = run(model, tokenizer, texts, pooling="mean")
    collected = run(model.bfloat16(), tokenizer, texts, pooling="mean")
    for site in reference:
        assert collected[site].dtype == torch.float32
        torch.testing.assert_close(collected[site], reference[site], rtol=5e-2, atol=5e-2)


def test_an_edited_model_is_refused():
    for name in ("llama", "olmo2"):  # edited in its norms, and by hooks
        model = tiny(name)
        alignment = Alignment.from_maps({1: torch.eye(HIDDEN)})
        with intervene(model, alignment, alpha=0.5), pytest.raises(StatesError, match="being edited"):
            run(model, tiny_tokenizer(), ["w5"])
        run(model, tiny_tokenizer(), ["w5"])


def stop_after(monkeypatch, batches: int) -> None:
    """Let the backbone run for some batches; then somebody presses Ctrl-C."""
    original, count = states_module._Recorder.run, [0]

    def limited(self, batch):
        count[0] += 1
        if count[0] > batches:
            raise KeyboardInterrupt
        return original(self, batch)

    monkeypatch.setattr(states_module._Recorder, "run", limited)


def test_an_interrupted_run_continues(tmp_path, monkeypatch):
    model, tokenizer, texts = tiny("llama"), tiny_tokenizer(), sentences(30)
    options = {"resume": tmp_path / "states", "batch_tokens": 30, "template": "{sentence} w5"}
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            run(model, tokenizer, texts, **options)
    kept = sorted((tmp_path / "states").glob("shard-*.safetensors"))
    assert len(kept) == 3
    expected = run(model, tokenizer, texts, batch_tokens=30, template="{sentence} w5")

    seen = []
    handle = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    # Another budget is allowed: it changes how, not what.
    resumed = run(model, tokenizer, texts, **{**options, "batch_tokens": 50})
    computed = sum(seen)
    seen.clear()
    again = run(model, tokenizer, texts, **options)
    handle.remove()
    assert 0 < computed < 30
    assert seen == []
    for site in expected:
        torch.testing.assert_close(resumed[site], expected[site], **TOLERANCE)
        assert torch.equal(again[site], resumed[site])


def test_changed_input_is_refused_with_the_reason(tmp_path):
    model, tokenizer, texts = tiny("llama"), tiny_tokenizer(), sentences(6)
    folder = tmp_path / "states"
    run(model, tokenizer, texts, resume=folder)
    changes = {
        "sentences_hash": {"texts": [*texts[:-1], "w4 w4"]},
        "sentences: 6 then, 5 now": {"texts": texts[:5]},
        "template: None then": {"template": "{sentence} w5"},
        "pooling: 'last' then, 'mean' now": {"pooling": "mean"},
        "layers": {"layers": [1]},
        "weights_hash": {"model": tiny("llama", seed=1)},
        "config_hash": {
            "model": tiny("llama", rope_theta=5.0, rope_parameters={"rope_theta": 5.0, "rope_type": "default"})
        },
        "tokens_hash": {"tokenizer": tiny_tokenizer(bos=False)},
    }
    for reason, change in changes.items():
        arguments = {"model": model, "tokenizer": tokenizer, "texts": texts, **change}
        with pytest.raises(StatesError, match=reason):
            run(**arguments, resume=folder)
    run(model, tokenizer, texts, resume=folder)


def test_damaged_folders_are_refused(tmp_path):
    model, tokenizer, texts = tiny("llama"), tiny_tokenizer(), sentences(6)
    folder = tmp_path / "states"
    first = run(model, tokenizer, texts, resume=folder)
    shard = next(folder.glob("shard-*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-7])
    with pytest.raises(StatesError, match=rf"{shard.name} is damaged .* remove it"):
        run(model, tokenizer, texts, resume=folder)
    shard.unlink()
    again = run(model, tokenizer, texts, resume=folder)
    assert all(torch.equal(first[site], again[site]) for site in first)

    (folder / "shard-99999999.safetensors").write_bytes(
        next((tmp_path / "states").glob("shard-*")).read_bytes().replace(b"layer.0", b"layer.9")
    )
    with pytest.raises(StatesError, match="is not a shard of these states"):
        run(model, tokenizer, texts, resume=folder)

    (folder / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(StatesError, match=r"manifest\.json cannot be read"):
        run(model, tokenizer, texts, resume=folder)
    (folder / "manifest.json").write_text(json.dumps([1]), encoding="utf-8")
    with pytest.raises(StatesError, match="is not a manifest"):
        run(model, tokenizer, texts, resume=folder)


def test_a_run_killed_at_its_first_write_can_start_again(tmp_path):
    (tmp_path / ".incline-0123456789abcdef.tmp").write_text("{", encoding="utf-8")
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    run(model, tokenizer, ["w5"], resume=tmp_path)
    (tmp_path / ".incline-fedcba9876543210.tmp").write_bytes(b"part")
    assert run(model, tokenizer, ["w5"], resume=tmp_path)[0].shape == (1, HIDDEN)


def test_a_folder_of_other_things_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("x", encoding="utf-8")
    with pytest.raises(StatesError, match="is not a folder of states"):
        run(tiny("llama"), tiny_tokenizer(), ["w5"], resume=tmp_path)
    with pytest.raises(StatesError, match="is not a folder of states"):
        run(tiny("llama"), tiny_tokenizer(), ["w5"], resume=tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_padding_never_reaches_the_states():
    """Padded positions may hold NaN (a row of masked attention); they must not be read."""
    h = torch.randn(2, 4, 3)
    real = torch.tensor([[False, True, True, False], [True, False, False, False]])
    h[~real] = float("nan")
    last = states_module.pool(h, real, "last")
    assert torch.equal(last, torch.stack([h[0, 2], h[1, 0]]))
    mean = states_module.pool(h, real, "mean")
    torch.testing.assert_close(mean, torch.stack([h[0, 1:3].mean(0), h[1, 0]]))
    assert PAD == 0  # the collector pads with id 0, which every embedding has
