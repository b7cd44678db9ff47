"""Weights that other libraries have quantised: bitsandbytes' layers, and GGUF files that transformers reads.

Everything is compared with hooks on the blocks of the same model, which know nothing of what is inside the blocks.
"""

from __future__ import annotations

import pytest
import torch
from doors import ALIGNMENT, MAPS, hooked
from hook_reference import HookedEdit, greedy, last_tokens, record
from interventions import CLOSE, STEPS, generate
from tiny_models import LAYERS, prompts, tiny
from tiny_tokenizer import tiny_tokenizer
from torch import nn
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from incline_fast import fit, intervene
from incline_fast.fitting.fit import fit_states
from incline_fast.intervention.sweep import sweep
from incline_fast.models.identity import weights_hash
from incline_fast.states.hidden_states import collect

# Of one length, so that all are one batch without padding, here as in the package.
SOURCE = [f"w{5 + i} w{6 + 3 * i} w{40 - i}" for i in range(6)]
TARGET = [f"w{9 + i} w{50 - i} w{30 + i}" for i in range(6)]


def check_edits(model):
    inputs = prompts()
    expected = hooked(model, inputs)
    assert not torch.allclose(model(**inputs).logits, expected, atol=1e-2)
    with torch.no_grad(), intervene(model, ALIGNMENT, alpha=0.6):
        torch.testing.assert_close(model(**inputs).logits, expected, **CLOSE)
        tokens = generate(model, inputs)[0]
    assert torch.equal(tokens, greedy(model, HookedEdit(MAPS, 0.6), inputs, STEPS)[0])


def last_states(model, texts):
    inputs = tiny_tokenizer()(texts, return_tensors="pt")
    return {site: states[:, -1] for site, states in record(model, LAYERS + 1, **inputs).items()}


def check_states_and_fit(model):
    X, Y = last_states(model, SOURCE), last_states(model, TARGET)
    found = collect(model, tiny_tokenizer(), SOURCE, progress=False)
    for site in X:
        torch.testing.assert_close(found[site], X[site], **CLOSE)
    options = {"estimator": "affine_ridge", "lam": 1.0, "progress": False}
    fitted = {"template": "{sentence}", "layers": list(X), **options}
    alignment = fit(model, tiny_tokenizer(), SOURCE, TARGET, **fitted)
    expected = fit_states(X, Y, **options)
    for site in X:
        torch.testing.assert_close(
            alignment.maps[site].as_dense(), expected.maps[site].as_dense(), rtol=1e-3, atol=1e-4
        )


@torch.no_grad()
def check_sweep(model, tolerance):
    source, target = (tiny_tokenizer()(text[:1], return_tensors="pt") for text in (SOURCE, TARGET))
    goal = model(**target).logits[0, -1].log_softmax(-1)
    with HookedEdit(MAPS, 0.5, where=last_tokens(source["attention_mask"])).on(model):
        edited = model(**source).logits[0, -1].log_softmax(-1)
    result = sweep(model, tiny_tokenizer(), ALIGNMENT, SOURCE[:1], TARGET[:1], alphas=[0.5], progress=False)
    assert float(result.kl[-1, 0]) == pytest.approx(float((goal.exp() * (goal - edited)).sum()), abs=tolerance)


BITS = {
    "8": {"load_in_8bit": True},
    "8, the head too": {"load_in_8bit": True, "llm_int8_skip_modules": []},
    "4": {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32},
    "nf4, twice": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
                   "bnb_4bit_compute_dtype": torch.float32},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:MatMul8bitLt", "ignore:.*is deprecated")
class TestBitsAndBytes:
    def load(self, folder, bits, seed=0):
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: its layers are not tried here")
        tiny("llama", seed).save_pretrained(folder)
        options = {"dtype": torch.float32, "device_map": "cpu", "quantization_config": BitsAndBytesConfig(**BITS[bits])}
        model = LlamaForCausalLM.from_pretrained(folder, **options).eval()
        model.generation_config.eos_token_id = None
        assert type(model.model.layers[0].mlp.up_proj) is not nn.Linear
        return model

    @pytest.mark.parametrize("bits", BITS)
    def test_states_edits_generation_and_sweeps_are_those_of_hooks(self, bits, tmp_path):
        model = self.load(tmp_path, bits)
        check_edits(model)
        check_states_and_fit(model)
        # 8-bit layers round what they are given to 1/127 of its largest value, so that a last rounding may tip a step.
        check_sweep(model, 2e-2 if bits.startswith("8") else 1e-4)

    @pytest.mark.parametrize("bits", BITS)
    def test_states_are_kept_for_these_weights(self, bits, tmp_path):
        model = self.load(tmp_path / "a", bits)
        before = weights_hash(model)
        model(**prompts())
        assert weights_hash(model) == before
        assert weights_hash(self.load(tmp_path / "b", bits)) == before
        assert weights_hash(self.load(tmp_path / "c", bits, seed=1)) != before


class TestGguf:
    def written(self, folder):
        """A GGUF file of the tiny Llama, and the same model with the values that are left of its weights."""
        gguf = pytest.importorskip("gguf", reason="gguf is not installed: its files are not tried here")
        model = tiny("llama")
        config, weights = model.config, model.state_dict()
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
        writer = gguf.GGUFWriter(folder / "tiny.gguf", "llama")
        writer.add_vocab_size(config.vocab_size)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        for name, weight in weights.items():
            # Rows of 32 numbers share a scale; others stay floats.
            blocks = weight.dim() == 2 and weight.shape[1] % 32 == 0
            kind = gguf.GGMLQuantizationType.Q8_0 if blocks else gguf.GGMLQuantizationType.F32
            heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
            rows = next((count for part, count in heads.items() if part in name), None)
            # These files have the two halves of each head's rotation interleaved.
            values = (
                weight if rows is None else weight.unflatten(0, (rows, 2, -1)).transpose(1, 2).reshape(weight.shape)
            )
            packed = gguf.quants.quantize(values.contiguous().numpy(), kind)
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), packed, raw_dtype=kind)
            weight.copy_(torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind)))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return model

    def test_a_file_is_the_model_with_the_values_that_are_left(self, tmp_path):
        plain = self.written(tmp_path)
        model = LlamaForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32).eval()
        model.generation_config.eos_token_id = None
        check_edits(model)
        check_states_and_fit(model)
        check_sweep(model, 1e-4)
        inputs = prompts()
        torch.testing.assert_close(hooked(model, inputs), hooked(plain, inputs), **CLOSE)
        assert weights_hash(model) == weights_hash(plain) != weights_hash(tiny("llama"))
