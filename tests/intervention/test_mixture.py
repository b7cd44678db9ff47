"""Batches of several languages: every row as with its own alignment alone, rows without a language as without any."""

from __future__ import annotations

import pytest
import torch
from hook_reference import cache_tensors
from interventions import CLOSE, STEPS, generate, random_bias, random_maps
from tiny_models import HIDDEN, LAYERS, prompts, tiny
from tiny_tokenizer import sentences, tiny_tokenizer

from incline_fast import AlignmentBundle
from incline_fast.alignment.alignment import Alignment
from incline_fast.fitting.fit import fit
from incline_fast.intervention.intervene import intervene
from incline_fast.maps import AffineMap


def low_rank(rank, sites=range(LAYERS + 1), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        site: AffineMap.low_rank(
            torch.randn(rank, HIDDEN, generator=generator) / HIDDEN**0.5,
            torch.randn(HIDDEN, rank, generator=generator) / rank**0.5,
        )
        for site in sites
    }


ALIGNMENTS = {
    "fr": Alignment.from_maps(random_maps(1), bias=random_bias(), form="interpolate"),
    "sw": Alignment.from_maps({site: map for site, map in random_maps(2).items() if site != 2}),
    "tr": Alignment.from_maps(low_rank(5, seed=3)),
    "de": Alignment.from_maps(low_rank(9, range(1, LAYERS + 1), seed=4), form="interpolate"),
}
ALPHA = {"fr": 0.5, "sw": 0.3, "tr": 0.7, "de": 0.4}
MIXES = [["fr", None, "sw"], ["tr", "de", "tr"], ["sw", "tr", None], ["fr", "fr", "de"]]


def alone(inputs, row):
    real = inputs["attention_mask"][row].bool()
    return {"input_ids": inputs["input_ids"][row][real][None], "attention_mask": real[real].long()[None]}


def each_alone(model, inputs, languages, **settings):
    """Tokens and prompt logits of every row by itself."""
    found = []
    for row, language in enumerate(languages):
        if language is None:
            found.append(generate(model, alone(inputs, row)))
            continue
        with intervene(model, ALIGNMENTS[language], alpha=ALPHA[language], **settings):
            found.append(generate(model, alone(inputs, row)))
    return torch.cat([tokens for tokens, _ in found]), torch.cat([out.logits[0] for _, out in found])


@pytest.mark.parametrize(("positions", "mode"), [("last", "online"), ("generated", "online"), ("last", "clean")])
@pytest.mark.parametrize("languages", MIXES, ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2", "olmo2"])
def test_every_row_is_edited_as_alone(name, languages, positions, mode):
    model, inputs = tiny(name), prompts((7, 4, 2))
    tokens, logits = each_alone(model, inputs, languages, positions=positions, mode=mode)
    with intervene(model, ALIGNMENTS, alpha=ALPHA, languages=languages, positions=positions, mode=mode) as run:
        together, out = generate(model, inputs)
        assert "form='per language'" in run.describe()
    assert torch.equal(together, tokens)
    torch.testing.assert_close(out.logits[0], logits, **CLOSE)


def test_rows_without_a_language_keep_their_bits():
    model, inputs = tiny("llama"), prompts((6, 6, 6))
    plain = model(**inputs)
    with intervene(model, ALIGNMENTS, alpha=0.5, languages=[None, "fr", None]):
        mixed = model(**inputs)
    for row in (0, 2):
        assert torch.equal(mixed.logits[row], plain.logits[row])
        for a, b in zip(cache_tensors(mixed.past_key_values), cache_tensors(plain.past_key_values), strict=True):
            assert torch.equal(a[row], b[row])
    assert (mixed.logits[1, -1] - plain.logits[1, -1]).abs().max() > 0.01


def test_languages_change_without_entering_again():
    model, inputs = tiny("llama"), prompts((5, 5))
    with intervene(model, ALIGNMENTS, alpha=ALPHA, languages=["fr", "de"]) as run:
        for languages in (["fr", "de"], ["de", None], ["tr", "fr"], ["fr", "de"]):
            run.languages = languages
            assert run.languages == languages
            tokens, _ = generate(model, inputs)
            with_others = tokens
            expected = []
            for row, language in enumerate(languages):
                other = tiny("llama")
                if language is None:
                    expected.append(generate(other, alone(inputs, row))[0])
                else:
                    with intervene(other, ALIGNMENTS[language], alpha=ALPHA[language]):
                        expected.append(generate(other, alone(inputs, row))[0])
            assert torch.equal(with_others, torch.cat(expected))


def test_languages_that_were_refused_leave_no_trace():
    """A language with maps at more sites would be another kind of site, and shift the numbers of the others."""
    model, inputs = tiny("llama"), prompts((5, 5, 5))
    wide = {"sw": ALIGNMENTS["sw"], "fr": ALIGNMENTS["fr"], "de": ALIGNMENTS["de"]}
    two_sites = {name: Alignment.from_maps({site: one.maps[site] for site in (1, 3)}) for name, one in wide.items()}
    given = {**two_sites, "fr": wide["fr"]}
    with intervene(model, given, alpha=0.5, languages=["sw", "de", "sw"]) as run:
        expected = model(**inputs).logits
        for _ in range(2):
            with pytest.raises(ValueError, match="have maps in these languages alone"):
                run.languages = ["fr", "de", "sw"]
        assert run.languages == ["sw", "de", "sw"]
        assert torch.equal(model(**inputs).logits, expected)
        run.languages = ["sw", "de", "sw"]
        assert torch.equal(model(**inputs).logits, expected)
    refused = intervene(model, given, alpha=0.5, languages=["sw", "de", "sw"])
    with pytest.raises(ValueError, match="have maps in these languages alone"):
        refused.languages = ["fr", "de", "sw"]
    with refused:
        assert torch.equal(model(**inputs).logits, expected)


def test_sites_at_which_other_languages_have_maps():
    """Three kinds of site in one pass, each with its own numbers of the same rows' maps."""
    model, inputs = tiny("llama"), prompts((6, 4, 5), side="right")
    parts = {"fr": (0, 1, 3), "sw": (1, 2), "tr": (0, 2, 3)}
    given = {
        name: Alignment.from_maps({site: random_maps(seed)[site] for site in sites})
        for seed, (name, sites) in enumerate(parts.items())
    }
    with intervene(model, given, alpha=0.5, languages=["tr", "fr", "sw"]):
        together = model(**inputs).logits
    for row, name in enumerate(("tr", "fr", "sw")):
        with intervene(model, given[name], alpha=0.5):
            expected = model(**alone(inputs, row)).logits[0, -1]
        last = int(inputs["attention_mask"][row].sum()) - 1
        torch.testing.assert_close(together[row, last], expected, **CLOSE)


def test_beams_and_several_sequences_repeat_rows():
    model, inputs = tiny("llama"), prompts((6, 5))
    settings = {"num_beams": 3, "num_return_sequences": 2}
    with intervene(model, ALIGNMENTS, alpha=ALPHA, languages=["fr", "tr"]):
        tokens, _ = generate(model, inputs, **settings)
    for row, language in enumerate(("fr", "tr")):
        with intervene(model, ALIGNMENTS[language], alpha=ALPHA[language]):
            single, _ = generate(model, alone(inputs, row), **settings)
        assert torch.equal(tokens[2 * row : 2 * row + 2], single)
    assert tokens.shape == (4, STEPS)


def test_one_strength_for_all_and_one_per_row():
    model, inputs = tiny("llama"), prompts((5, 5))
    for alpha in (0.4, [0.2, 0.6]):
        with intervene(model, ALIGNMENTS, alpha=alpha, languages=["fr", "tr"]):
            logits = model(**inputs).logits[:, -1]
        for row, language in enumerate(("fr", "tr")):
            own = alpha if isinstance(alpha, float) else alpha[row]
            with intervene(model, ALIGNMENTS[language], alpha=own):
                expected = model(**alone(inputs, row)).logits[:, -1]
            torch.testing.assert_close(logits[row : row + 1], expected, **CLOSE)


def test_a_bundle_is_read_by_language(tmp_path):
    AlignmentBundle.save(tmp_path / "many.safetensors", ALIGNMENTS)
    bundle = AlignmentBundle(tmp_path / "many.safetensors")
    model, inputs = tiny("llama"), prompts((5, 5))
    with intervene(model, bundle, alpha=ALPHA, languages=["fr", "sw"]):
        read = model(**inputs).logits
    assert repr(bundle).endswith("; 2 read)")
    with intervene(model, ALIGNMENTS, alpha=ALPHA, languages=["fr", "sw"]):
        assert torch.equal(model(**inputs).logits, read)


def test_any_pivot_and_both_directions(tmp_path):
    """English to Turkish beside Swahili to French: neither the source nor the target has to be English."""
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    texts = {name: sentences(10, seed=seed) for seed, name in enumerate(("en", "tr", "sw", "fr"))}
    pairs = {"en": "tr", "sw": "fr", "tr": "en"}
    fitted = {
        source: fit(
            model,
            tokenizer,
            texts[source],
            texts[target],
            source_language=source,
            target_language=target,
            progress=False,
        )
        for source, target in pairs.items()
    }
    AlignmentBundle.save(tmp_path / "pivots.safetensors", fitted)
    bundle = AlignmentBundle(tmp_path / "pivots.safetensors", model)
    assert {name: one.metadata.target_language for name, one in bundle.items()} == pairs
    inputs = prompts((6, 4, 5))
    with intervene(model, bundle, alpha=0.5, languages=["sw", "en", "tr"]):
        together, _ = generate(model, inputs)
    for row, name in enumerate(("sw", "en", "tr")):
        with intervene(model, fitted[name], alpha=0.5):
            assert torch.equal(generate(model, alone(inputs, row))[0], together[row : row + 1])


def test_arguments_that_do_not_fit():
    model, inputs = tiny("llama"), prompts((5, 5))
    for settings, message in (
        ({"alpha": 0.5}, "alignment is several alignments; expected languages"),
        ({"alpha": 0.5, "languages": []}, "expected one language or None per row"),
        ({"alpha": 0.5, "languages": "fr"}, "expected one language or None per row"),
        ({"alpha": 0.5, "languages": [None]}, "languages names no language"),
        ({"alpha": 0.5, "languages": ["xx"]}, "languages has 'xx'; allowed: fr, sw, tr, de, or None"),
        ({"alpha": {"fr": 0.5}, "languages": ["sw"]}, "alpha has no strength for 'sw'; it has fr"),
        ({"alpha": [0.1], "languages": ["sw", "fr"]}, "alpha has 1 values, languages 2"),
        ({"alpha": 0.5, "languages": ["sw"], "layers": [2]}, r"layers \[2\] have no map in any of these alignments"),
    ):
        with pytest.raises(ValueError, match=message):
            intervene(model, ALIGNMENTS, **settings)
    with pytest.raises(ValueError, match="languages is given with one alignment"):
        intervene(model, ALIGNMENTS["fr"], alpha=0.5, languages=["fr", "fr"])
    with (
        intervene(model, ALIGNMENTS, alpha=0.5, languages=["fr"] * 3),
        pytest.raises(ValueError, match="languages has 3 values; this forward pass has 2 rows"),
    ):
        model(**inputs)
