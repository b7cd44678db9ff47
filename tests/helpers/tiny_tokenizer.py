"""A tokenizer of whole words for the tiny models: 61 ids, built here, nothing downloaded."""

from __future__ import annotations

import random

from tiny_models import BOS, EOS, PAD, VOCAB
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

UNKNOWN = 3
WORDS = [f"w{i}" for i in range(UNKNOWN + 1, VOCAB)]


def tiny_tokenizer(
    *, bos: bool = True, eos: bool = False, pad: bool = True, side: str = "right"
) -> PreTrainedTokenizerFast:
    """Splits at spaces; ``w4`` has id 4 and so on. Adds BOS and EOS, and has a pad token, as the arguments say."""
    vocabulary = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, "<unk>": UNKNOWN}
    vocabulary |= {word: index for index, word in enumerate(WORDS, UNKNOWN + 1)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos or eos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> " * bos + "$A" + " </s>" * eos, special_tokens=[("<s>", BOS), ("</s>", EOS)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>" if pad else None,
        padding_side=side,
    )


def sentences(n: int, seed: int = 0, longest: int = 9) -> list[str]:
    """``n`` random sentences of 1 to ``longest`` words."""
    chooser = random.Random(seed)
    return [" ".join(chooser.choices(WORDS, k=chooser.randint(1, longest))) for _ in range(n)]
