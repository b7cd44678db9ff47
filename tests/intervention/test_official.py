"""The published algorithms written a second time, from sentences to generated tokens, against the presets.

``paper`` (Wang et al., ACL 2025, arXiv 2410.12462, section 3): states of the last token of bare sentences, minimum-norm
least squares per layer, and in one run, at the last prompt token of every layer, ``h <- h + alpha W h``.

``official`` (the authors' published code, github.com/weixuan-wang123/INCLINE, intervention_llama.py): the output of
each block's MLP, averaged over all tokens of the sentence, BOS included, every second pair behind its target sentence;
the same least squares; and two runs: the first records each MLP's output ``h`` at the last prompt token, the second
replaces it by ``h - sigma W h``, ``h`` being the first run's. Its strength has the opposite sign, ``sigma = -alpha``.

Common to both: layers 1 to L, BOS is not edited, no bias, no regularisation.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import HIDDEN, LAYERS, tiny
from tiny_tokenizer import sentences, tiny_tokenizer

from incline_fast.fitting.fit import fit
from incline_fast.intervention.intervene import intervene

SOURCE, TARGET, PROMPTS = sentences(24, seed=1), sentences(24, seed=2), sentences(6, seed=3)
STEPS = 6
ALPHA = 0.35


class Blocks:
    """Hooks on every block of a Llama, or on its MLP; ``edit(layer, states [1, T, d])`` returns the new output."""

    def __init__(self, model, edit, mlp=False):
        self._handles = [
            (block.mlp if mlp else block).register_forward_hook(lambda module, args, out, layer=layer: edit(layer, out))
            for layer, block in enumerate(model.model.layers, 1)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for handle in self._handles:
            handle.remove()


def states(model, ids, mlp=False):
    """``{layer: [T, d]}`` of one sentence in a plain run."""
    found = {}
    with Blocks(model, lambda layer, out: found.__setitem__(layer, out[0].clone()), mlp):
        model(ids)
    return found


def learned(model, tokenizer, official):
    """``{layer: W [d, d]}``, W acting as ``W @ h``, by numpy's minimum-norm least squares in double precision."""
    pairs = list(zip(SOURCE, TARGET, strict=True))
    if official:
        pairs = [(f"{t}\n{s}", f"{t}\n{t}") if i % 2 else (s, t) for i, (s, t) in enumerate(pairs)]
    pooled = {}
    for side, texts in zip(("source", "target"), zip(*pairs, strict=True), strict=True):
        every = [states(model, torch.tensor([tokenizer(text)["input_ids"]]), official) for text in texts]
        for layer in range(1, LAYERS + 1):
            rows = [s[layer].mean(0) if official else s[layer][-1] for s in every]
            pooled[side, layer] = torch.stack(rows).double().numpy()
    return {
        layer: torch.from_numpy(np.linalg.lstsq(pooled["source", layer], pooled["target", layer], rcond=None)[0].T)
        for layer in range(1, LAYERS + 1)
    }


def decoded(model, ids, edit, mlp=False):
    """Greedy tokens after a prompt whose pass is edited, and the logits of the first; decode steps are plain."""
    with Blocks(model, edit, mlp):
        out = model(ids, use_cache=True)
    first, tokens = out.logits[0, -1], [out.logits[0, -1].argmax()]
    for _ in range(STEPS - 1):
        out = model(tokens[-1].view(1, 1), past_key_values=out.past_key_values, use_cache=True)
        tokens.append(out.logits[0, -1].argmax())
    return torch.stack(tokens), first


def paper(model, W, ids):
    def edit(layer, out):
        h = out[0, -1].double()
        new = out.clone()
        new[0, -1] = (h + ALPHA * (W[layer] @ h)).float()
        return new

    return decoded(model, ids, edit)


def official(model, W, ids):
    sigma = -ALPHA
    clean = states(model, ids, mlp=True)

    def edit(layer, out):
        h = clean[layer][-1].double()
        new = out.clone()
        new[0, -1] = (h - sigma * (W[layer] @ h)).float()
        return new

    return decoded(model, ids, edit, mlp=True)


@pytest.mark.parametrize(("preset", "mode", "algorithm"), [("paper", "online", paper), ("official", "clean", official)])
def test_preset_is_the_published_algorithm(preset, mode, algorithm):
    model, tokenizer = tiny("llama"), tiny_tokenizer(side="left")
    alignment = fit(model, tokenizer, SOURCE, TARGET, preset=preset, progress=False)
    W = learned(model, tokenizer, preset == "official")
    batch = tokenizer(PROMPTS, padding=True, return_tensors="pt", return_token_type_ids=False)
    width = batch["input_ids"].shape[1]
    with intervene(model, alignment, alpha=ALPHA, mode=mode):
        out = model.generate(
            **batch, max_new_tokens=STEPS, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    for row, text in enumerate(PROMPTS):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        tokens, logits = algorithm(model, W, ids)
        torch.testing.assert_close(out.logits[0][row], logits, rtol=1e-4, atol=1e-4)
        assert torch.equal(out.sequences[row, width:], tokens)
        plain = model(ids).logits[0, -1]
        assert (logits - plain).abs().max() > 0.05, "the edit does too little to be seen"


def test_the_two_presets_differ():
    """A mix-up of the two could not pass both comparisons."""
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    ids = torch.tensor([tokenizer(PROMPTS[0])["input_ids"]])
    last, mean = learned(model, tokenizer, False), learned(model, tokenizer, True)
    assert all((last[layer] - mean[layer]).abs().max() > 0.05 for layer in last)
    online, two_runs = paper(model, last, ids)[1], official(model, last, ids)[1]
    assert (online - two_runs).abs().max() > 0.05
    assert next(iter(last.values())).shape == (HIDDEN, HIDDEN)
