"""Models that are not plain: seen through where that is right, refused with what to do where it is not."""

from __future__ import annotations

import io

import pytest
import torch
from interventions import generate, random_maps
from tiny_models import HIDDEN, LAYERS, prompts, tiny
from tiny_tokenizer import sentences, tiny_tokenizer
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from incline_fast import Alignment, UnsupportedModelError, fit, intervene
from incline_fast.intervention.sweep import sweep
from incline_fast.models.architectures import describe
from incline_fast.models.identity import identify, weights_hash
from incline_fast.states.hidden_states import StatesError, collect

TEXTS = sentences(4)


def states(model, **options):
    return collect(model, tiny_tokenizer(), TEXTS, progress=False, **options)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[site], b[site]) for site in a)


def adapted(name="llama", **options):
    """A model with LoRA weights that are not zero, and the same model with them merged."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    options = {"r": 2, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False, **options}
    model = peft.get_peft_model(tiny(name), peft.LoraConfig(**options)).eval()
    torch.manual_seed(0)
    merged = peft.get_peft_model(tiny(name), peft.LoraConfig(**options)).eval().merge_and_unload()
    return model, merged


class TestPeft:
    def test_states_are_those_of_the_adapted_model(self):
        model, merged = adapted()
        found, wanted = states(model), states(merged)
        assert all(torch.allclose(found[site], wanted[site], atol=1e-5) for site in wanted)
        assert not torch.allclose(found[LAYERS], states(tiny("llama"))[LAYERS], atol=1e-3)

    @pytest.mark.parametrize("mode", ["online", "clean"])
    def test_edits_and_generation_are_those_of_the_merged_model(self, mode):
        model, merged = adapted()
        alignment, inputs = Alignment.from_maps(random_maps()), prompts()
        found = []
        for one in (model, merged, model.get_base_model()):
            with torch.no_grad(), intervene(one, alignment, alpha=0.4, mode=mode):
                found.append((one(**inputs).logits, generate(one, inputs)[0]))
        for logits, tokens in (found[0], found[2]):
            assert torch.allclose(logits, found[1][0], atol=1e-4)
            assert torch.equal(tokens, found[1][1])
        with torch.no_grad():
            assert not torch.allclose(model(**inputs).logits, found[0][0], atol=1e-3)

    def test_fit_and_sweep_take_it(self):
        model, _ = adapted()
        alignment = fit(model, tiny_tokenizer(), sentences(12), sentences(12, 1), layers=[1, 2], progress=False)
        alignment.check(model)
        alignment.check(model.get_base_model())
        result = sweep(model, tiny_tokenizer(), alignment, ["w5 w6"], ["w7"], alphas=[0.5], progress=False)
        assert bool(result.kl.isfinite().all())

    def test_other_adapters_are_other_weights(self, tmp_path):
        model, merged = adapted()
        assert weights_hash(model) != weights_hash(tiny("llama"))
        kept = states(model, resume=tmp_path)
        assert same(states(model, resume=tmp_path), kept)
        with pytest.raises(StatesError, match="weights_hash"):
            states(merged, resume=tmp_path)

    def test_a_norm_that_is_wrapped_says_what_to_do(self):
        model, _ = adapted(modules_to_save=["input_layernorm"])
        with pytest.raises(UnsupportedModelError, match=r"layers\.0\.input_layernorm is a .*merge_and_unload\(\)"):
            describe(model)

    def test_prompts_that_the_wrapper_adds_are_refused(self):
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(tiny("llama"), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
        with pytest.raises(UnsupportedModelError, match=r"tokens of its own before every prompt.*get_base_model\(\)"):
            describe(model)
        assert describe(model.get_base_model()).num_layers == LAYERS


class TestWrappers:
    @pytest.mark.parametrize("take", [describe, identify, states, weights_hash])
    def test_replicas_say_what_to_do(self, take):
        model = nn.DataParallel(tiny("llama"))
        with pytest.raises(UnsupportedModelError, match=r"DataParallel .*pass the model inside: model\.module"):
            take(model)
        take(model.module)

    def test_wrappers_that_give_out_the_attributes_of_the_model_say_what_to_do(self):
        class Engine(nn.Module):
            def __init__(self, module):
                super().__init__()
                self.module = module

            def __getattr__(self, name):
                try:
                    return super().__getattr__(name)
                except AttributeError:
                    return getattr(super().__getattr__("module"), name)

            def forward(self, *args, **kwargs):
                return self.module(*args, **kwargs)

        engine = Engine(tiny("llama"))
        assert engine.config.model_type == "llama"
        with pytest.raises(UnsupportedModelError, match=r"Engine .*pass the model inside: model\.module"):
            describe(engine)

    def test_what_holds_a_model_says_where_it_is(self):
        class Pipeline:
            model = tiny("llama")

        with pytest.raises(TypeError, match=r"model is a Pipeline; .*pass its \.model"):
            describe(Pipeline())
        with pytest.raises(TypeError, match="model is a str; expected a model of transformers"):
            describe("llama")

    def test_compiled_models_are_seen_through(self):
        model = tiny("llama")
        compiled = torch.compile(model, backend="eager")
        assert weights_hash(compiled) == weights_hash(model)
        assert describe(compiled).model is model
        model.model.layers[1] = torch.compile(model.model.layers[1], backend="eager")
        assert describe(model).num_layers == LAYERS

    @pytest.mark.parametrize(
        ("name", "blocks"), [("llama", "layers"), ("gpt2", "h"), ("opt", "layers"), ("olmo2", "layers")]
    )
    def test_missing_parts_never_blame_the_library(self, name, blocks):
        model = tiny(name)
        del describe(model).backbone._modules[blocks]
        with pytest.raises(UnsupportedModelError, match="wrapped or replaced") as refusal:
            describe(model)
        assert "correct" not in str(refusal.value)


class TestOffload:
    def test_states_edits_and_generation_are_those_of_the_model(self):
        accelerate = pytest.importorskip("accelerate")
        plain, inputs = tiny("llama"), prompts()
        model = accelerate.cpu_offload(tiny("llama"), execution_device=torch.device("cpu"))
        assert all(parameter.is_meta for parameter in model.parameters())
        assert same(states(model), states(plain))
        alignment = Alignment.from_maps(random_maps())
        with torch.no_grad(), intervene(plain, alignment, alpha=0.4), intervene(model, alignment, alpha=0.4):
            assert torch.equal(model(**inputs).logits, plain(**inputs).logits)
            assert torch.equal(generate(model, inputs)[0], generate(plain, inputs)[0])
        grid = {"alphas": [0.5], "progress": False}
        swept = [sweep(one, tiny_tokenizer(), alignment, ["w5 w6"], ["w7"], **grid).kl for one in (model, plain)]
        assert torch.allclose(*swept, atol=1e-5)

    def test_only_the_embedding(self):
        accelerate = pytest.importorskip("accelerate")
        model = tiny("llama")
        accelerate.cpu_offload(model.get_input_embeddings(), execution_device=torch.device("cpu"))
        assert same(states(model), states(tiny("llama")))

    def test_weights_that_nothing_brings_in_are_refused(self):
        with pytest.raises(UnsupportedModelError, match="meta device, and nothing brings them in"):
            states(tiny("llama").to("meta"))
        maps = {1: torch.zeros(HIDDEN, HIDDEN)}
        with pytest.raises(UnsupportedModelError, match="meta device, and nothing brings them in"):
            intervene(tiny("llama").to("meta"), Alignment.from_maps(maps), alpha=0.4)


class Patched(nn.Module):
    """A norm of another library: its own names, the same numbers."""

    def __init__(self, norm, offset, **names):
        super().__init__()
        self.weight = norm.weight
        self.offset = offset
        for name, value in names.items():
            setattr(self, name, value)

    def forward(self, hidden_states):
        x = hidden_states.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (self.offset + self.weight)


class TestPatchedNorms:
    @pytest.mark.parametrize("name", ["variance_epsilon", "eps", "epsilon", "norm_eps"])
    @pytest.mark.parametrize(("model", "offset"), [("llama", 0.0), ("gemma3", 1.0)])
    def test_either_name_of_epsilon(self, name, model, offset):
        plain, patched, inputs = tiny(model), tiny(model), prompts()
        for owner, attribute in [
            *((layer, "input_layernorm") for layer in patched.model.layers),
            (patched.model, "norm"),
        ]:
            setattr(owner, attribute, Patched(getattr(owner, attribute), offset, **{name: 1e-6}))
        assert [site.eps for site in describe(patched).sites] == [1e-6] * (LAYERS + 1)
        assert [site.weight_offset for site in describe(patched).sites] == [offset] * (LAYERS + 1)
        alignment = Alignment.from_maps(random_maps())
        with torch.no_grad(), intervene(plain, alignment, alpha=0.4), intervene(patched, alignment, alpha=0.4):
            assert torch.allclose(patched(**inputs).logits, plain(**inputs).logits, atol=1e-5)

    def test_norms_of_liger(self):
        liger = pytest.importorskip("liger_kernel.transformers.rms_norm", exc_type=ImportError)
        model = tiny("gemma3")
        model.model.norm = liger.LigerRMSNormForGemma(HIDDEN, 1e-5)
        assert (describe(model).sites[-1].eps, describe(model).sites[-1].weight_offset) == (1e-5, 1.0)

    def test_a_norm_of_torch_without_an_epsilon_has_that_of_its_dtype(self):
        model = tiny("llama")
        model.model.norm = nn.RMSNorm(HIDDEN)
        assert describe(model).sites[-1].eps == torch.finfo(torch.float32).eps

    @pytest.mark.parametrize("eps", [{}, {"eps": None}, {"eps": "1e-6"}, {"eps": True}])
    def test_what_is_no_norm_is_refused(self, eps):
        model = tiny("llama")
        model.model.norm = Patched(model.model.norm, 0.0, **eps)
        with pytest.raises(UnsupportedModelError, match=r"model\.norm is a Patched without an epsilon"):
            describe(model)


class WithState(nn.Module):
    """A layer with extra state, as layers of fp8 libraries have."""

    def __init__(self, layer, state):
        super().__init__()
        self.layer, self.state = layer, state

    def forward(self, x):
        return self.layer(x)

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


def dynamic(model):
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def int8_of_torchao(model):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


def with_state(model):
    model.model.layers[0].mlp.up_proj = WithState(
        model.model.layers[0].mlp.up_proj, {"scale": torch.ones(2), "step": 3}
    )
    return model


@pytest.mark.filterwarnings("ignore:.*is deprecated")
class TestQuantised:
    @pytest.mark.parametrize("change", [dynamic, int8_of_torchao, with_state, lambda model: model.bfloat16()])
    def test_states_are_kept_and_resumed(self, change, tmp_path):
        model = change(tiny("llama"))
        kept = states(model, resume=tmp_path)
        assert same(states(change(tiny("llama")), resume=tmp_path), kept)
        with pytest.raises(StatesError, match="weights_hash"):
            states(change(tiny("llama", seed=1)), resume=tmp_path)
        alignment, inputs = Alignment.from_maps(random_maps()), prompts()
        with torch.no_grad(), intervene(model, alignment, alpha=0.4):
            edited = model(**inputs).logits
        with torch.no_grad():
            assert not torch.equal(model(**inputs).logits, edited)

    STATES = (
        {"scale": torch.ones(2), "step": 3}, torch.zeros(3), torch.zeros(0), None, "text", b"bytes",
        io.BytesIO(b"bytes"), [1, (2.5, None)], torch.float8_e4m3fn, torch.eye(2).to_sparse(), object(),
        torch.tensor(True), torch.quantize_per_tensor(torch.ones(3), 0.5, 0, torch.qint8),
        torch.quantize_per_channel(torch.ones(2, 2), torch.ones(2), torch.zeros(2), 0, torch.qint8),
        TwoTensor(torch.ones(2), torch.zeros(2)),
    )  # fmt: skip

    @pytest.mark.parametrize("state", STATES, ids=lambda state: type(state).__name__)
    def test_extra_state_of_any_kind(self, state):
        def model():
            layer = tiny("llama")
            layer.model.layers[0].mlp.up_proj = WithState(layer.model.layers[0].mlp.up_proj, state)
            return layer

        assert weights_hash(model()) == weights_hash(model())
        assert weights_hash(model()) != weights_hash(tiny("llama"))

    def test_other_extra_state_is_another_model(self):
        model = with_state(tiny("llama"))
        before = weights_hash(model)
        model.model.layers[0].mlp.up_proj.state["step"] = 4
        assert weights_hash(model) != before

    def test_an_embedding_whose_weight_is_packed(self):
        class Packed(nn.Module):
            def __init__(self, embedding):
                super().__init__()
                self.num_embeddings = embedding.num_embeddings
                self.weight = nn.Parameter(torch.zeros(3, 1, dtype=torch.uint8), requires_grad=False)
                self.table = embedding.weight

            def forward(self, ids):
                return self.table[ids]

        model = tiny("llama")
        model.set_input_embeddings(Packed(model.get_input_embeddings()))
        assert same(states(model), states(tiny("llama")))
