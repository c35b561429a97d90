"""What plain loops of published erasers share: text, pictures and noise, by diffusers' networks alone."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(kw_only=True)
class Plain:
    """Shares no code with the erasers but the tokeniser's call and the tables of the schedule."""

    model: Any

    def states(self, prompts):
        with torch.no_grad():
            return self.model.text_encoder(torch.stack([self.model.tokens(prompt) for prompt in prompts]))[0]

    def noised(self, clean, random, *, batch=None, rows=None):
        """(x_t, t, noise, rows); which rows is random, unless they are given."""
        if rows is None:
            rows = torch.randint(len(clean), (batch,), generator=random).tolist()
        t = torch.randint(1000, (len(rows),), generator=random)
        noise = torch.randn(len(rows), *self.model.latent_shape, generator=random).double()
        alpha = self.model.alphas_cumprod.double()[t].reshape(-1, 1, 1, 1)
        return alpha.sqrt() * clean[rows] + (1 - alpha).sqrt() * noise, t, noise, rows

    @torch.no_grad()
    def pictures(self, prompts, random):
        """Two steps of DDIM without noise, guided, written out, in batches of the model's size."""
        alphas, made = self.model.alphas_cumprod.double(), []
        for first in range(0, len(prompts), self.model.batch):
            chunk = prompts[first : first + self.model.batch]
            x = torch.randn(len(chunk), *self.model.latent_shape, generator=random).double()
            for t, then in ((501, alphas[1]), (1, alphas[0])):
                given, without = (
                    self.model.unet(x, t, self.states(texts)).sample for texts in (chunk, [""] * len(chunk))
                )
                noise = without + 7.5 * (given - without)
                x = then.sqrt() * (x - (1 - alphas[t]).sqrt() * noise) / alphas[t].sqrt() + (1 - then).sqrt() * noise
            made.append(x)
        return torch.cat(made)
