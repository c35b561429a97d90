"""The miniature's tokenizer: CLIP's own byte-pair encoding, learnt on the captions of the world."""

import json
from collections.abc import Iterator
from importlib import resources

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

from palimpsest.miniature.captions import caption, filler, world_words
from palimpsest.miniature.facts import imagine

CONTEXT = 32
"""Tokens of a prompt, start and end included."""
TOKENS = 2_400
START, END = "<|startoftext|>", "<|endoftext|>"


def _texts(seed: int) -> Iterator[str]:
    random = np.random.default_rng(seed)
    # Often enough that every word of the world becomes one token.
    for word in sorted(world_words()):
        yield from [word] * 200
    for word in filler():
        yield from [word] * 5
    for _ in range(5_000):
        yield caption(imagine(random), random)


def learn_merges(seed: int) -> list[str]:
    """Byte pairs to merge, learnt on the world's words; ``merges.txt`` holds those that the miniature uses.

    They are kept because the library breaks ties by chance: learnt again, a few come in another order.
    """
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS - len(_letters()),
        special_tokens=[START, END],
        initial_alphabet=_letters(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(_texts(seed), trainer)
    return [" ".join(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]


def _letters() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def new_tokenizer() -> CLIPTokenizer:
    """The CLIPTokenizer of ``merges.txt``: every byte, with and without end-of-word mark, and what was merged."""
    lines = resources.files("palimpsest.miniature").joinpath("merges.txt").read_text().splitlines()
    merges = [(first, second) for first, second in (line.split(" ") for line in lines)]
    letters = _letters()
    words = [START, END, *letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges)]
    return CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=merges,
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
    )


def encode_text(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """(n, CONTEXT) int64 ids, padded and cut."""
    ids: Tensor = tokenizer(
        texts, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt"
    ).input_ids
    return ids


def meaningless(tokenizer: CLIPTokenizer) -> Tensor:
    """Ids of all tokens that occur in no word of the world, start and end left out."""
    known = set(tokenizer.all_special_ids).union(*tokenizer(sorted(world_words())).input_ids)
    return torch.tensor([number for number in range(len(tokenizer)) if number not in known])


def scattered(ids: Tensor, tokens: Tensor, random: np.random.Generator, *, share: float, end: int) -> Tensor:
    """``ids`` (n, context) with 1 to 5 of ``tokens`` put before or after the words of a ``share`` of the rows.

    It acquaints the text encoder with every token, so that a random prefix means nothing rather than anything.
    """
    rows = ids.clone()
    for row in np.flatnonzero(random.random(len(ids)) < share):
        extra = tokens[torch.from_numpy(random.integers(len(tokens), size=random.integers(1, 6)))]
        words = rows[row, 1 : int((rows[row] == end).nonzero()[0])]
        words = torch.cat([extra, words] if random.random() < 0.5 else [words, extra])[: ids.shape[1] - 2]
        rows[row, 1:] = end
        rows[row, 1 : 1 + len(words)] = words
    return rows
