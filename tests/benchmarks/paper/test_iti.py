"""ITI: states, choice and shifts of heads against whole passes of single prompts and formulas written out here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import HIDDEN, LAYERS, tiny
from tiny_task import LABELS, tiny_task
from tiny_tokenizer import tiny_tokenizer
from torch import Tensor, nn

from benchmarks.paper.figure_lines import Line
from benchmarks.paper.figures import label_logits
from benchmarks.paper.iti import HeadShift, fit_heads, head_states, probe
from benchmarks.paper.last_tokens import LastTokens

HEADS = 4
WIDTH = HIDDEN // HEADS


def whole_passes(model: nn.Module, hooks: dict[str, Any]) -> Tensor:
    """Logits of the labels after each prompt alone, without a cache, under forward hooks by module name."""
    tokenizer, task = tiny_tokenizer(), tiny_task()
    columns = tokenizer(" ".join(LABELS), add_special_tokens=False).input_ids
    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(hook) for name, hook in hooks.items()]
    rows = []
    for sentence in task.sentences:
        prompt = tokenizer(task.template.replace("{sentence}", sentence), return_tensors="pt")
        with torch.no_grad():
            rows.append(model(input_ids=prompt.input_ids, use_cache=False).logits[0, -1])
    for handle in handles:
        handle.remove()
    return torch.stack(rows)[:, columns]


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_states_of_heads(name: str) -> None:
    model = tiny(name)
    found = head_states(model, tiny_tokenizer(), tiny_task())
    seen: list[Tensor] = []
    whole_passes(model, {"model.layers.1.self_attn.o_proj": lambda module, args, output: seen.append(args[0][0, -1])})
    assert found.shape == (LAYERS, HEADS, 12, WIDTH)
    torch.testing.assert_close(found[1, 2], torch.stack(seen)[:, 2 * WIDTH : 3 * WIDTH], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_shift_before_the_projection_is_its_image_behind_it(name: str) -> None:
    model = tiny(name)
    shift = torch.zeros(HIDDEN)
    shift[WIDTH : 2 * WIDTH] = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    weight = model.get_submodule("model.layers.1.self_attn.o_proj").weight.detach()

    def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        moved = output.clone()
        moved[:, -1] += 0.7 * weight @ shift
        return moved

    expected = whole_passes(model, {"model.layers.1.self_attn.o_proj": add})
    plain = whole_passes(model, {})
    tokenizer, task = tiny_tokenizer(), tiny_task()
    tokens = tokenizer(" ".join(LABELS), add_special_tokens=False).input_ids
    prompts = LastTokens(model, tokenizer, task)
    edit = HeadShift([(1, 1)], [1.0], {1: shift})
    with edit.added(model, 0.7):
        torch.testing.assert_close(prompts.logits(tokens), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prompts.logits(tokens), plain, rtol=1e-4, atol=1e-5)
    assert float((expected - plain).abs().max()) > 1e-3
    found = label_logits(model, tokenizer, task, {("ITI", "x"): Line(edit, (0.7,))})
    torch.testing.assert_close(found["ITI", "x", 0.7], expected, rtol=1e-4, atol=1e-5)


def test_the_heads_that_tell_the_languages_apart_are_moved() -> None:
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(2, 2, 3, 40, 4, generator=generator)
    apart = torch.tensor([3.0, -2.0, 0.0, 1.0])
    target[1, 2] += 3 * apart
    target[0, 1] += 0.5 * apart
    found = fit_heads(source, target, 2)
    assert found.heads == [(1, 2), (0, 1)]
    assert found.accuracy[0] == 1.0 > found.accuracy[1] > 0.7
    x, y = source[1, 2].double().numpy(), target[1, 2].double().numpy()
    mean = y.mean(0) - x.mean(0)
    unit = mean / (mean**2).sum() ** 0.5
    both = [*(x @ unit), *(y @ unit)]
    centre = sum(both) / len(both)
    deviation = (sum((value - centre) ** 2 for value in both) / len(both)) ** 0.5
    torch.testing.assert_close(found.shift[1][8:].double(), torch.tensor(deviation * unit), rtol=1e-5, atol=1e-6)
    assert not found.shift[1][:8].any()
    assert not found.shift[0][[*range(4), *range(8, 12)]].any()
    assert len(fit_heads(source, target).heads) == 0  # 48 of 1024 is none of 6


def test_probe_leaves_a_pair_out_together() -> None:
    """A state that only tells which pair it is of cannot be told from its translation."""
    one_hot = torch.eye(30)
    accuracy, entropy = probe(one_hot, one_hot)
    assert accuracy <= 0.5
    assert entropy >= 0.69


def test_a_model_without_the_projection_is_refused() -> None:
    with pytest.raises(ValueError, match=r"block 0 is a GPT2Block; expected one with a linear self_attn\.o_proj"):
        head_states(tiny("gpt2"), tiny_tokenizer(), tiny_task())
