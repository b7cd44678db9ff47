"""A module at a site is the module that it was."""

from __future__ import annotations

import pytest
import torch
from doors import ALIGNMENT, MAPS, NAMES, hooked, settings
from hook_reference import HookedEdit, last_tokens
from interventions import CLOSE
from tiny_models import prompts, tiny
from torch import nn

from incline_fast.intervention.intervene import intervene


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_same_object_of_its_class(name):
    model = tiny(name)
    modules = dict(model.named_modules())
    classes = {path: type(module) for path, module in modules.items()}
    printed, state = repr(model), list(model.state_dict())
    with intervene(model, ALIGNMENT, alpha=0.6):
        assert dict(model.named_modules()) == modules
        assert all(isinstance(module, classes[path]) for path, module in modules.items())
        assert repr(model) == printed
        assert list(model.state_dict()) == state


@pytest.mark.parametrize("name", NAMES)
def test_hooks_put_on_it_see_the_edited_state(name):
    model, inputs = tiny(name), prompts((5, 3))

    def keep(module, args, kwargs):
        seen.append((args[0] if args else kwargs["hidden_states"]).clone())

    def run(where):
        seen.clear()
        with where:
            modules = [model.get_submodule(path) for path in tapped]
            handles = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in modules]
            model(**inputs)
        for handle in handles:
            handle.remove()
        return list(seen)

    seen = []
    with intervene(model, ALIGNMENT, alpha=0.6):
        tapped = [
            path
            for path, module in model.named_modules()
            if "_incline_fast_taps" in vars(module) and module._incline_fast_taps.before is not None
        ]
    edit = HookedEdit(MAPS, 0.6, where=last_tokens(inputs["attention_mask"]))
    expected = run(edit.on(model))
    actual = run(intervene(model, ALIGNMENT, alpha=0.6))
    assert len(actual) == len(expected) == len(tapped)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize("positions", ["last", "generated"])
def test_hooks_that_change_its_output_do_so(positions):
    model, inputs = tiny("llama"), prompts((5, 3))
    norm = model.model.layers[1].input_layernorm
    with intervene(model, ALIGNMENT, alpha=0.6, positions=positions):
        untouched = model.generate(**inputs, **settings())
        handle = norm.register_forward_hook(lambda module, args, output: output)
        assert torch.equal(model.generate(**inputs, **settings()), untouched)
        handle.remove()
        handle = norm.register_forward_hook(lambda module, args, output: -output)
        touched = model.generate(**inputs, **settings())
    handle.remove()
    norm.register_forward_hook(lambda module, args, output: -output)
    with intervene(model, ALIGNMENT, alpha=0.6, positions=positions):
        assert torch.equal(model.generate(**inputs, **settings()), touched)
    assert not torch.equal(touched, untouched)


def test_parameters_put_in_its_place():
    model, other, inputs = tiny("llama"), tiny("llama"), prompts((5, 3))
    for layer in other.model.layers:
        layer.input_layernorm.weight = nn.Parameter(layer.input_layernorm.weight * 2, requires_grad=False)
    expected = hooked(other, inputs)
    with intervene(model, ALIGNMENT, alpha=0.6):
        for layer in model.model.layers:
            layer.input_layernorm.weight = nn.Parameter(layer.input_layernorm.weight * 2, requires_grad=False)
        torch.testing.assert_close(model(**inputs).logits, expected, **CLOSE)
    assert torch.equal(model(**inputs).logits, other(**inputs).logits)


def test_parametrised_norms_are_the_norms_that_they_compute():
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    model, other, inputs = tiny("llama"), tiny("llama"), prompts((5, 3))
    for layer, doubled in zip(model.model.layers, other.model.layers, strict=True):
        nn.utils.parametrize.register_parametrization(layer.input_layernorm, "weight", Doubled())
        doubled.input_layernorm.weight = nn.Parameter(doubled.input_layernorm.weight * 2, requires_grad=False)
    expected = hooked(other, inputs)
    with intervene(model, ALIGNMENT, alpha=0.6):
        torch.testing.assert_close(model(**inputs).logits, expected, **CLOSE)
    assert torch.equal(model(**inputs).logits, other(**inputs).logits)


def test_a_module_put_on_it_stays():
    model, inputs = tiny("llama"), prompts((5, 3))
    with intervene(model, ALIGNMENT, alpha=0.6):
        model.model.norm.extra = nn.Linear(2, 2)
        assert "model.norm.extra.weight" in model.state_dict()
        model(**inputs)
    assert "model.norm.extra.weight" in model.state_dict()
