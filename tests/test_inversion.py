"""Words that no token means: where they stand in a prompt, and how they are found."""

import pytest
import torch
from PIL import ImageOps

from palimpsest.errors import BadSetting
from palimpsest.inversion import Blanked, initial_words, invert, latents_of
from palimpsest.model import Sampling
from palimpsest.records import Attempt
from tiny import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model(dtype=torch.float64, batch=1)


@pytest.mark.parametrize(("before", "after"), [("a photo of", ""), ("", "church"), ("a red", "by the sea"), ("", "")])
def test_a_blank_filled_with_a_tokens_own_embedding_is_that_token(model, before, after):
    dog = model.vocabulary[model.tokens("dog")[1]][None]
    blanked = Blanked.of(model, 1, before=before, after=after)
    found, expected = blanked.encode(model, dog), model.embed([f"{before} dog {after}"])
    torch.testing.assert_close(found.states, expected.states)
    torch.testing.assert_close(found.pooled, expected.pooled)


def test_refuses_blanks_that_do_not_fit(model):
    with pytest.raises(BadSetting, match=r"expected room for 12 more words in 'a photo of \.\.\.', got 11"):
        Blanked.of(model, 12, before="a photo of")


def plain(model, clean, prompt, start, *, lr=0.1, iterations=3, backwards=False):
    """Textual inversion of one word at the end of ``prompt``, with the token's row of a table trained."""
    random, unet = torch.Generator().manual_seed(0), model.unet
    word = start.clone().requires_grad_()
    adam = torch.optim.AdamW([word], lr=lr)
    ids = model.tokens(f"{prompt} dog")[None]
    table = model.text_encoder.get_input_embeddings()
    here = (ids == model.tokens("dog")[1])[..., None]
    for _ in range(iterations):
        picture = int(torch.randint(len(clean), (1,), generator=random))
        torch.randint(1, (1,), generator=random)
        t = int(torch.randint(1000, (1,), generator=random))
        noise = torch.randn(1, *model.latent_shape, generator=random).double()
        alpha = model.alphas_cumprod[t].double()
        hook = table.register_forward_hook(lambda module, given, out: torch.where(here, word, out))
        states = model.text_encoder(ids)[0]
        hook.remove()
        x = alpha.sqrt() * clean[[picture]] + (1 - alpha).sqrt() * noise
        loss = ((unet(x, t, encoder_hidden_states=states).sample - noise) ** 2).mean()
        (word.grad,) = torch.autograd.grad(-loss if backwards else loss, word)
        adam.step()
    return word.detach()


def test_equals_a_plain_loop(model):
    random = torch.Generator().manual_seed(1)
    clean = torch.randn(2, *model.latent_shape, generator=random).double()
    start = initial_words(model, "style", 1)
    prompts = [Blanked.of(model, 1, before="a photo of")]
    before = model.fingerprint
    found = invert(model, clean, prompts, start=start, random=torch.Generator().manual_seed(0), iterations=3, lr=0.1)
    assert (found - start).abs().max() > 0.1
    torch.testing.assert_close(found, plain(model, clean, "a photo of", start), atol=1e-6, rtol=0)
    assert (found - plain(model, clean, "a photo of", start, backwards=True)).abs().max() > 0.1
    model.forget()
    assert model.fingerprint == before


def test_the_word_found_predicts_the_noise_of_the_pictures_better(model):
    clean = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(1)).double()
    start = initial_words(model, "object", 1)
    prompt = Blanked.of(model, 1, before="a photo of")
    found = invert(
        model, clean, [prompt], start=start, random=torch.Generator().manual_seed(2), iterations=60, lr=0.1, batch=4
    )
    random = torch.Generator().manual_seed(3)
    noise = torch.randn(64, *model.latent_shape, generator=random).double()
    steps = torch.randint(1000, (64,), generator=random)
    latents, errors = model.noised(clean, noise, steps), []
    for words in (start, found):
        with torch.no_grad():
            said = model.predict_noise(latents, steps, prompt.encode(model, words).repeat(64))
        errors.append((said - noise).square().mean())
    assert errors[1] < errors[0]


def test_pictures_are_taken_with_their_mirror_images(model):
    (picture,) = model.draw([Attempt(prompt="a church", seed=0)], Sampling(steps=2))
    found = latents_of(model, [picture])
    torch.testing.assert_close(found[0], model.encode_picture(picture))
    torch.testing.assert_close(found[1], model.encode_picture(ImageOps.mirror(picture)))


@pytest.mark.parametrize(("pictures", "prompts"), [(0, 1), (1, 0)])
def test_refuses_to_look_for_nothing(model, pictures, prompts):
    clean = torch.zeros(pictures, *model.latent_shape).double()
    with pytest.raises(BadSetting, match=f"expected pictures and prompts, got {pictures} and {prompts}"):
        invert(
            model,
            clean,
            [Blanked.of(model, 1)] * prompts,
            start=initial_words(model, "object", 1),
            random=torch.Generator(),
        )
