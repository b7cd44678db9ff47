"""One definition of padding, BOS and the last real token, for every kind of tokenizer and every user of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from interventions import random_maps
from tiny_models import BOS, EOS, VOCAB, tiny
from tiny_tokenizer import tiny_tokenizer
from transformers import PreTrainedTokenizer

from incline_fast import Alignment, intervene
from incline_fast.cli.output import continue_prompts
from incline_fast.evaluation import PLAIN, ContinuationTask, score_continuations
from incline_fast.intervention.sweep import sweep
from incline_fast.models.sites import block_output
from incline_fast.states.hidden_states import collect
from incline_fast.text.prompts import (
    PromptError,
    TokenLimits,
    check_template,
    fill,
    leading_bos,
    left_padded,
    render,
    tokenize,
)

LIMITS = TokenLimits(bos_token_ids=(BOS,))


class PythonTokenizer(PreTrainedTokenizer):
    """Adds tokens as tokenizers of model repositories do, and leaves the mask of special tokens at its default."""

    vocab_size = VOCAB

    def __init__(self, head=(), tail=()):
        words = {f"w{i}": i for i in range(4, VOCAB)}
        self.vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, **words}
        self.names = {index: word for word, index in self.vocabulary.items()}
        self.head, self.tail = list(head), list(tail)
        super().__init__(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>")

    def get_vocab(self):
        return dict(self.vocabulary)

    def _tokenize(self, text, **options):
        return text.split()

    def _convert_token_to_id(self, token):
        return self.vocabulary.get(token, 3)

    def _convert_id_to_token(self, index):
        return self.names[index]

    def build_inputs_with_special_tokens(self, ids, more=None):
        return self.head + ids + self.tail


@pytest.mark.parametrize("head", [(), (BOS,), (BOS, BOS), (EOS,), (3,)])
@pytest.mark.parametrize("tail", [(), (EOS,), (EOS, EOS)])
@pytest.mark.parametrize("text", ["w5", "w5 w6 w7", "w5 w5 w5", "w9 w9"])
def test_added_tokens_are_found_without_a_mask(head, tail, text):
    (prompt,) = tokenize(PythonTokenizer(head, tail), [text], LIMITS)
    words = [int(word[1:]) for word in text.split()]
    assert prompt.ids == [*head, *words, *tail]
    assert prompt.real == [False] * len(head) + [True] * len(words) + [False] * len(tail)
    assert prompt.up_to_last == [*head, *words]


@pytest.mark.parametrize(("text", "real"), [("<s> w5", [0, 1]), ("<s> <s> w5 w6", [0, 0, 1, 1]), ("w5 <s>", [1, 1])])
@pytest.mark.parametrize("bos", [False, True])
def test_every_bos_at_the_beginning_is_bos(text, real, bos):
    (prompt,) = tokenize(tiny_tokenizer(bos=bos, eos=True), [text], LIMITS)
    assert prompt.real == [False] * bos + [bool(flag) for flag in real] + [False]


def test_tokenizers_of_other_kinds():
    def arrays(texts, **options):
        batch = [texts] if isinstance(texts, str) else texts
        found = [np.array([int(word[1:]) for word in text.split()]) for text in batch]
        return {"input_ids": found[0] if isinstance(texts, str) else found}

    (prompt,) = tokenize(arrays, ["w5 w6"], LIMITS)
    assert (prompt.ids, prompt.real) == ([5, 6], [True, True])

    def opaque(texts, **options):
        return {"input_ids": [9] if isinstance(texts, str) else [[5, 6]] * len(texts)}

    with pytest.raises(PromptError, match="sentence 0: function does not say which of the tokens"):
        tokenize(opaque, ["x"], LIMITS)


def test_states_do_not_depend_on_the_kind_of_tokenizer():
    model, texts = tiny("llama"), ["w5", "w6 w7 w8", "w9 w9"]
    for python, fast in (
        (PythonTokenizer(tail=(EOS,)), tiny_tokenizer(bos=False, eos=True)),
        (PythonTokenizer(head=(BOS,)), tiny_tokenizer(bos=True, eos=False)),
        (PythonTokenizer(head=(BOS,), tail=(EOS,)), tiny_tokenizer(bos=True, eos=True)),
    ):
        ours, theirs = (collect(model, tokenizer, texts, progress=False) for tokenizer in (python, fast))
        assert all(torch.equal(ours[site], theirs[site]) for site in theirs)


def test_fitting_sweeping_and_editing_mean_the_same_token():
    """With two BOS, and an EOS that is added: the state that is read is the one that is edited and measured."""
    model, tokenizer = tiny("llama"), tiny_tokenizer(bos=True, eos=True)
    text = "<s> w5 w6"
    alignment = Alignment.from_maps({2: random_maps()[2]})
    (prompt,) = tokenize(tokenizer, [text], LIMITS)
    ids, mask = left_padded([prompt.up_to_last])
    before, after = [], []
    block = model.model.layers[2]
    handles = [
        block.register_forward_pre_hook(lambda module, args: before.append(args[0].clone())),
        block.register_forward_hook(lambda module, args, output: after.append(block_output(output).clone())),
    ]
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
        with intervene(model, alignment, alpha=0.5):
            logits = model(input_ids=ids, attention_mask=mask).logits[0, -1]
    for handle in handles:
        handle.remove()
    changed = (after[0] != after[1]).any(-1)[0].nonzero().flatten().tolist()
    assert changed == [len(prompt.up_to_last) - 1]
    state = collect(model, tokenizer, [text], progress=False)[2][0]
    assert torch.allclose(state, before[0][0, changed[0]], atol=1e-5)
    target = model(input_ids=torch.tensor([[BOS, 9]])).logits[0, -1].log_softmax(-1)
    expected = (target.exp() * (target - logits.log_softmax(-1))).sum()
    result = sweep(model, tokenizer, alignment, [text], ["w9"], alphas=[0.5], progress=False)
    assert torch.allclose(result.kl[result.index(0.5), 0], expected, atol=1e-5)


def test_an_end_that_the_tokenizer_adds_is_neither_continued_nor_scored():
    model = tiny("llama")
    plain, adding = tiny_tokenizer(eos=False), tiny_tokenizer(eos=True)
    task = ContinuationTask("tiny", "", [["w5 w6", "w7"]], [[" w8", " w9 w10"]], [0], ["a"])
    scored = [score_continuations(model, one, task, [PLAIN], progress=False) for one in (plain, adding)]
    assert torch.equal(scored[0][1], scored[1][1])
    assert torch.allclose(scored[0][0], scored[1][0], atol=1e-5)
    texts = ["w5 w6 w7", "w8"]
    assert continue_prompts(model, plain, texts, 4) == continue_prompts(model, adding, texts, 4)


@pytest.mark.parametrize("ids", [[[1, 1, 5, 1]], [[1, 5, 1, 1]], [[1, 1, 1, 1]], [[0, 0, 1, 5]], [[5, 1, 1, 0]]])
@pytest.mark.parametrize("mask", [[[1, 1, 1, 1]], [[0, 1, 1, 1]], [[0, 0, 1, 1]], [[1, 1, 1, 0]]])
def test_leading_bos_of_a_row_is_that_of_its_text(ids, mask):
    row, real = torch.tensor(ids), torch.tensor(mask, dtype=torch.bool)
    found = leading_bos(row == BOS, real)[0][real[0]].tolist()
    text = row[0][real[0]].tolist()
    (prompt,) = tokenize(
        lambda texts, **options: {"input_ids": [[*text, 7]], "special_tokens_mask": [[0] * (len(text) + 1)]},
        ["x"],
        LIMITS,
    )
    assert found == [not flag for flag in prompt.real[:-1]]


def never_run_text(model):
    """Fail where a text runs; one token to find out how the model is built is none."""

    def ran(module, args, kwargs):
        if kwargs["input_ids"].numel() > 1:
            pytest.fail("the model ran")

    model.model.register_forward_pre_hook(ran, with_kwargs=True)


def test_what_a_model_does_not_take_is_refused_before_it_runs():
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    never_run_text(model)
    alignment = Alignment.from_maps({2: random_maps()[2]})
    long = " ".join(["w5"] * 70)
    for source, target in ((["w5", long], ["w6", "w7"]), (["w5", "w6"], ["w7", long])):
        with pytest.raises(PromptError, match=r"sentence 1 has 71 tokens; the model takes 64"):
            sweep(model, tokenizer, alignment, source, target, progress=False)
    small = tiny("llama", vocab_size=50)
    never_run_text(small)
    with pytest.raises(PromptError, match="token id 60, the model has 50 embeddings"):
        sweep(small, tokenizer, alignment, ["w5"], ["w60"], progress=False)


@pytest.mark.parametrize("template", ["none", "{sentence}{sentence}", "", "{sentence} \ud800", 5, b"{sentence}"])
def test_bad_templates_are_refused(template):
    with pytest.raises((TypeError, ValueError), match="template"):
        check_template(template)


def test_other_braces_are_text():
    assert fill('{"a": {}, "text": "{sentence}"}', "{0} {sentence}") == '{"a": {}, "text": "{0} {sentence}"}'
    assert fill(None, "{sentence}") == "{sentence}"


@pytest.mark.parametrize("sentences", ["text", b"text", {"a": "b"}, 5, None, [5], [b"a"], [None]])
def test_what_is_no_list_of_sentences_is_refused(sentences):
    with pytest.raises(TypeError, match="sentence"):
        render(sentences, None)


@pytest.mark.parametrize("kind", [list, tuple, iter, np.array, lambda texts: (text for text in texts), dict.fromkeys])
def test_lists_of_sentences_of_every_kind(kind):
    given = kind(["w5", "w6"])
    if isinstance(given, dict):
        given = given.keys()
    rendered = render(given, "{sentence} w7")
    assert rendered == ["w5 w7", "w6 w7"]
    assert all(type(text) is str for text in rendered)
