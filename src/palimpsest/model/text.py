"""What the denoiser is conditioned on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Text:
    """Encoded prompts, a batch of them; opaque to all but ``Model``."""

    states: Tensor
    """(n, context, width): the text encoder's last hidden states."""
    pooled: Tensor | None = None
    """(n, width): the state at the end token."""

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, rows: slice | list[int] | Tensor) -> "Text":
        """Some of the rows, still a batch."""
        return Text(states=self.states[rows], pooled=None if self.pooled is None else self.pooled[rows])

    def repeat(self, times: int) -> "Text":
        """The whole batch ``times`` times over."""
        pooled = None if self.pooled is None else self.pooled.repeat(times, 1)
        return Text(states=self.states.repeat(times, 1, 1), pooled=pooled)

    @staticmethod
    def join(texts: "Sequence[Text]") -> "Text":
        """One batch of several."""
        pooled = [text.pooled for text in texts if text.pooled is not None]
        return Text(
            states=torch.cat([text.states for text in texts]),
            pooled=torch.cat(pooled) if len(pooled) == len(texts) else None,
        )
