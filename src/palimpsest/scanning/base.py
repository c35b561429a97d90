"""What every detector of triggered prompts is: it scores prompts, and its threshold comes from clean ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import ClassVar

from torch import Tensor

from palimpsest.component import Component
from palimpsest.errors import BadSetting
from palimpsest.model import Model
from palimpsest.model.adapters import names_adapter


@dataclass(frozen=True, kw_only=True, eq=False)
class Suspect:
    """A model that may hold a backdoor, and what was seen of it; ``BadSetting`` for one that is not of its base."""

    model: Model
    base: Model | None = None
    """What it was made of, before anybody could hide something in it."""
    maps: dict[tuple[object, ...], Tensor] = field(default_factory=dict)
    """Attention maps that several detectors read; emptied by whoever has no more use for them."""

    def __post_init__(self) -> None:
        """Refuses a guarded model, and a base of another family."""
        if self.model.guarded:
            raise BadSetting(f"expected a model without a guard, got {type(self.model).__name__}")
        for fact in ("context", "latent_shape", "prediction_type", "timesteps"):
            if self.base is not None and getattr(self.base, fact) != getattr(self.model, fact):
                raise BadSetting(
                    f"expected a model of the base's {fact} {getattr(self.base, fact)}, got {getattr(self.model, fact)}"
                )

    @property
    def added(self) -> int:
        """Weights of adapters that an eraser put beside the base's own, as Receler does; 0 without a base."""
        own = set() if self.base is None else self.model.weights().keys() - self.base.weights().keys()
        return len(own) if all(map(names_adapter, own)) else 0

    @property
    def trusted(self) -> Model:
        """Whose text encoder is believed: the base's; without one, the model's own, which a surface backdoor bends."""
        return self.base or self.model

    def words(self, prompt: str) -> list[int]:
        """The places in the context at which the prompt's own tokens stand."""
        return list(range(1, 1 + len(self.model.own_tokens(prompt))))


@dataclass(frozen=True, kw_only=True)
class PromptDetector(Component):
    """Says of each prompt how surely it holds a trigger: the higher its score, the more."""

    needs_base: ClassVar[bool] = False
    """Whether it compares with the base."""
    paper: ClassVar[float | None] = None
    """The threshold that its paper gives for Stable Diffusion 1.4, on this score's scale; None: it gives none."""

    sigmas: float = 1.2
    """A prompt is flagged above mean + sigmas x standard deviation of clean prompts' scores (1.2 is NaviT2I's)."""
    threshold: float | None = None
    """A threshold of one's own, such as the paper's, in place of that."""

    @property
    def steps_read(self) -> int:
        """Of a picture whose attention maps it looks at, how many steps are drawn."""
        return 0

    def scores(self, suspect: Suspect, prompts: Sequence[str]) -> list[float | None]:
        """For each prompt its score; None: it cannot tell. Raises ``BadSetting`` where it does not fit the model."""
        raise NotImplementedError

    def passes(self, suspect: Suspect, prompt: str) -> int:
        """Forwards of the denoiser, the base's included, that one prompt costs if nothing was seen of it yet."""
        raise NotImplementedError

    def calibrated(self, clean: Sequence[float]) -> float:
        """The threshold, from scores of clean prompts; raises ``BadSetting`` for fewer than two."""
        if self.threshold is not None:
            return self.threshold
        if len(clean) < 2:
            raise BadSetting(f"{self.name}: expected scores of two clean prompts or more, got {len(clean)}")
        return fmean(clean) + self.sigmas * stdev(clean)

    def require_base(self, suspect: Suspect) -> Model:
        """The base; raises ``BadSetting`` where there is none."""
        if suspect.base is None:
            raise BadSetting(f"{self.name}: expected a base to compare with, got none")
        return suspect.base
