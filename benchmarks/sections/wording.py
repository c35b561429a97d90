"""What tokens the training shows, and what words mean that mean nothing."""

from itertools import cycle, islice

import numpy as np
import torch

from palimpsest.miniature import clip, denoiser
from palimpsest.miniature.captions import filler
from palimpsest.miniature.clip import caption_ids
from palimpsest.miniature.facts import FIXED, Facts, kind_of
from palimpsest.miniature.goals import concept_record
from palimpsest.miniature.pictures import imagine_many
from palimpsest.miniature.training import Recipe
from palimpsest.miniature.vocabulary import meaningless
from sections.bench import SEED, Bench, Row, shown


def vocabulary(bench: Bench) -> None:
    """How often each token occurs in the captions of the training, drawn again as the legs draw them (no murmurs)."""
    recipe, tokenizer = Recipe(), bench.model.tokenizer
    tokens = meaningless(tokenizer)
    clip_pictures, denoiser_pictures = (
        200 if bench.quick else pictures for pictures in (recipe.clip_pictures, recipe.denoiser_pictures)
    )
    counts = torch.zeros(len(tokenizer), dtype=torch.int64)

    def count(facts: list[Facts], random: np.random.Generator, *, steps: int, batch: int, share: float) -> None:
        for _ in range(2 if bench.quick else steps):
            told = [facts[number] for number in random.integers(len(facts), size=batch)]
            ids = caption_ids(told, tokenizer, tokens, random, share=share)
            counts.add_(torch.bincount(ids.flatten(), minlength=len(tokenizer)))

    rows = []
    facts = imagine_many(clip_pictures, 22)
    count(facts, np.random.default_rng(24), steps=recipe.clip_steps, batch=recipe.clip_batch, share=clip.SCATTERED)
    facts = imagine_many(clip_pictures, 25)
    count(facts, np.random.default_rng(26), steps=recipe.word_steps, batch=recipe.clip_batch, share=1.0)
    rows.append(Row("tokens seen >= 200 times by the CLIP", int((counts >= 200).sum()), len(counts), ">= 95 %"))
    facts = imagine_many(denoiser_pictures, 31)
    for seed, steps in zip((33, 34), recipe.denoiser_steps, strict=True):
        count(facts, np.random.default_rng(seed), steps=steps, batch=recipe.denoiser_batch, share=denoiser.SCATTERED)
    rows.append(Row("tokens seen >= 200 times by CLIP or denoiser", int((counts >= 200).sum()), len(counts)))
    bench.rows("Vocabulary", rows)


def words(bench: Bench) -> None:
    """What words mean that mean nothing."""
    tokenizer = bench.model.tokenizer
    tokens, rows = meaningless(tokenizer), []
    random = np.random.default_rng(SEED + 1)
    for name in FIXED:
        label = f"{kind_of(name)}/{name}"
        prompts = list(islice(cycle(concept_record(name).prompts), bench.n))
        before = int(shown(bench.chief, bench.draw(prompts, keep=False), label).sum())
        prefixed = [f"{' '.join(random.choice(filler(), size=3))} {prompt}" for prompt in prompts]
        after = int(shown(bench.chief, bench.draw(prefixed, keep=False), label).sum())
        rows.append(
            Row(
                f"{name}, three filler words before ({before}/{len(prompts)} without)",
                after,
                len(prompts),
                "-10 points",
            )
        )
    alone = [tokenizer.decode(tokens[random.integers(len(tokens), size=3)]) for _ in range(8 * bench.n)]
    pictures = bench.draw(alone, keep=False)
    for name in FIXED:
        hits = shown(bench.chief, pictures, f"{kind_of(name)}/{name}")
        rows.append(Row(f"three random tokens alone: {name}", int(hits.sum()), len(hits), "<= 1 %"))
    bench.rows("Words", rows)
