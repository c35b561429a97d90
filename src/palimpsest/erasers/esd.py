"""ESD, Erased Stable Diffusion: fine-tuning towards the opposite of the concept's own guidance."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.erasers.base import Eraser
from palimpsest.fitting import Fit, kept
from palimpsest.model import Model, Text
from palimpsest.negative_guidance import below, done, point, points, predictions
from palimpsest.records import Concept


class Defaults(NamedTuple):
    """What a form takes where a setting is left to it, and the weights that each variant trains."""

    eta: float
    iterations: int
    lr: float
    weights: dict[str, str]


FORMS: dict[str, Defaults] = {
    "2023": Defaults(
        eta=1.0,
        iterations=1000,
        lr=1e-5,
        weights={
            "x": r"unet\..*\.attn2\..*",
            "x-strict": r"unet\..*\.attn2\.to_[kv]\..*",
            "u": r"unet\.(?!time_embedding\.|conv_norm_out\.|conv_out\.)(?!.*\.attn2\.).*",
            "self": r"unet\..*\.attn1\..*",
            "all": r"unet\..*",
        },
    ),
    # This form trains linear and convolution layers only: the rest of a denoiser's weights are norms.
    "2024": Defaults(
        eta=2.0,
        iterations=200,
        lr=5e-5,
        weights={
            "x": r"unet\..*\.attn2\..*",
            "x-strict": r"unet\..*\.attn2\.to_[kv]\..*",
            "u": r"unet\.(?!.*\.attn2\.)(?!.*norm).*",
            "self": r"unet\..*\.attn1\..*",
            "all": r"unet\.(?!.*norm).*",
        },
    ),
}


class Lesson(NamedTuple):
    """What one iteration is about."""

    which: int
    latents: Tensor
    steps: Tensor
    target: Tensor


@dataclass(frozen=True, kw_only=True)
class Esd(Eraser):
    """Trains a student to predict for the concept what a frozen copy predicts away from it.

    Gandikota et al., "Erasing Concepts from Diffusion Models", arXiv 2303.07345. For the concept's name c, the empty
    prompt c_0 and the frozen original eps*, the loss is |eps(x_t, c) - target|^2 with

        target = eps*(x_t, c_0) - eta (eps*(x_t, c) - eps*(x_t, c_0))

    x_t comes from noise by DDIM with guidance 3 under c, by the student as it is by then, down to one of 50 steps,
    drawn uniformly; t is uniform within that step's part of the schedule. (The authors' code stops two steps further
    down than the t that it then asks about. Here x_t is as noisy as the step says.) One concept is drawn per iteration.

    ``form = "2024"`` is the authors' later code: x_t comes from the original, t is the step itself, the target starts
    at eps*(x_t, c) in place of eps*(x_t, c_0), and eta, iterations and lr have defaults of their own.
    """

    name = "esd"

    form: Literal["2023", "2024"] = "2023"
    variant: Literal["x", "x-strict", "u", "self", "all"] = "x"
    """What is trained. ``x``: cross-attention (the paper's choice for styles and people); ``x-strict``: its keys and
    values alone; ``u``: all but cross-attention (the paper's choice for objects and content; in the 2023 form also but
    the time embedding and the output layers); ``self``: self-attention; ``all``."""
    eta: float | None = None
    """Strength of the negative guidance; None: the form's own (2023: 1, 2024: 2)."""
    iterations: int | None = None
    """None: the form's own (2023: 1000, 2024: 200)."""
    lr: float | None = None
    """Adam's learning rate; None: the form's own (2023: 1e-5, 2024: 5e-5)."""
    batch: int = 1
    """Trajectories per iteration, each from noise of its own, all of one concept and down to one step."""
    steps: int = 50
    """DDIM steps of a whole trajectory."""
    guidance: float = 3.0
    """Guidance of the trajectories."""
    synonyms: bool = False
    """Erase each of a concept's synonyms as well, as if it were another concept; the paper does not."""
    every: int = 0
    """Iterations between the stages that are kept for persistence curves; 0: the end alone."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        self.require_least(iterations=1, lr=0, batch=1, steps=1, every=0)

    def stages(
        self, model: Model, concepts: Sequence[Concept], *, random: torch.Generator
    ) -> Iterator[tuple[int, Model]]:
        """The student after every ``every`` iterations, and at the end."""
        own = FORMS[self.form]
        iterations = own.iterations if self.iterations is None else self.iterations
        student = model.copy(trainable=own.weights[self.variant])
        optimiser = torch.optim.Adam(student.trainable(), lr=own.lr if self.lr is None else self.lr)
        with torch.no_grad():
            null = model.embed([""])
            texts = [model.embed([name]) for name in self._names(concepts)]

        ahead = self._ahead(model, texts, null, iterations, random) if self.form == "2024" else None

        def loss() -> Tensor:
            if ahead is None:
                which = below(len(texts), random)
                latents, steps = self._point(student, texts[which], random)
                target = self._target(model, latents, steps, text=texts[which], null=null)
            else:
                which, latents, steps, target = ahead(done(optimiser))
            return functional.mse_loss(student.predict_noise(latents, steps, texts[which].repeat(self.batch)), target)

        fit = Fit(
            student=student,
            optimiser=optimiser,
            random=random,
            iterations=iterations,
            every=self.every,
            phase=self.name,
        )
        yield from fit.run(loss)

    def _names(self, concepts: Sequence[Concept]) -> list[str]:
        return [name for concept in concepts for name in (concept.name, *(concept.synonyms if self.synonyms else ()))]

    def _point(self, walker: Model, text: Text, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """x_t on a trajectory of ``walker``, and t for each sample."""
        rows = text.repeat(self.batch)
        return point(walker, rows, random, steps=self.steps, guidance=self.guidance, within=True)

    def _ahead(
        self, teacher: Model, texts: Sequence[Text], null: Text, iterations: int, random: torch.Generator
    ) -> Callable[[int], Lesson]:
        """All iterations' lessons, made beforehand in full batches: none of them hangs on the student."""

        def make() -> tuple[Tensor, ...]:
            which = []

            def asked() -> Iterator[Text]:
                for _ in range(iterations):
                    which.append(below(len(texts), random))
                    yield texts[which[-1]].repeat(self.batch)

            walked = points(teacher, asked(), random, steps=self.steps, guidance=self.guidance, within=False)
            latents, steps = map(torch.cat, walked)
            each = Text.join([texts[one].repeat(self.batch) for one in which])
            targets = self._target(teacher, latents, steps, text=each, null=null)
            return torch.tensor(which), latents.cpu(), steps, targets.cpu()

        which, latents, steps, targets = kept(f"{self.name}-lessons", make, random=random)

        def lesson(iteration: int) -> Lesson:
            rows = slice(iteration * self.batch, (iteration + 1) * self.batch)
            here = (latents[rows].to(teacher.device), steps[rows], targets[rows].to(teacher.device))
            return Lesson(int(which[iteration]), *here)

        return lesson

    def _target(self, teacher: Model, latents: Tensor, steps: Tensor, *, text: Text, null: Text) -> Tensor:
        """What the student is to predict for the concept; the teacher's two branches in one batch."""
        without, with_concept = predictions(teacher, latents, steps, [null, text])
        eta = FORMS[self.form].eta if self.eta is None else self.eta
        start = without if self.form == "2023" else with_concept
        return start - eta * (with_concept - without)
