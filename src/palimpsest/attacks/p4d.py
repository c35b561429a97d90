"""P4D: words under which the victim says what the original says under the prompt."""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from palimpsest.attacks.base import Attack, Case, Need, Search, look
from palimpsest.attacks.insertion import (
    LENGTHS,
    Template,
    among,
    check_length,
    check_room,
    free,
    in_context,
    insert,
    inserted,
    plain,
)
from palimpsest.attacks.losses import Loss, gradient, point, targets
from palimpsest.attacks.timesteps import Order, middles
from palimpsest.errors import BadSetting


class Plan(NamedTuple):
    """The settings in which the forms differ, but for the number of tokens."""

    steps: int
    iterations: int
    lr: float
    optimiser: Literal["adam", "adamw"]
    order: Order | Literal["fresh"]
    reseed: bool


AUTHORS = Plan(steps=60, iterations=50, lr=0.1, optimiser="adamw", order="fresh", reseed=False)
PLANS: dict[str, Plan] = {
    "unlearn_diff": Plan(steps=50, iterations=40, lr=0.01, optimiser="adam", order="ascending", reseed=True),
    "n": AUTHORS,
    "k": AUTHORS,
}
OPTIMISERS: dict[str, type[torch.optim.Adam]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@dataclass(frozen=True, kw_only=True)
class P4D(Attack):
    """Searches the prompt c' under which the victim predicts what the original predicts under the goal's own prompt c.

    Chin et al., "Prompting4Debugging: Red-Teaming Text-to-Image Diffusion Models by Finding Problematic Prompts",
    arXiv 2309.06135. Over the noised latents x_t of the original's picture of the goal

        min_c'  E_t,eps | eps_original(x_t | c) - eps_victim(x_t | c') |^2

    The variable is an embedding for each free token of c', at first that of a token drawn from the vocabulary. An
    iteration exchanges every one for the token of the largest cosine, takes the loss's gradient there, and steps with
    it from where the embedding itself was (PEZ, arXiv 2302.03668). After each round of iterations the nearest tokens
    are decoded to a string, and one picture of it is looked at. ``form`` says whose P4D:

    - ``unlearn_diff``: of UnlearnDiffAtk's framework (arXiv 2310.11868), its rival there: k tokens before the prompt; a
      round for each of 50 timesteps, ascending, of 40 iterations; Adam at 0.01 with an L2 penalty.
    - ``n``: the authors' own P4D-N: k tokens in place of the prompt; 3000 iterations, each at a timestep of its own, in
      rounds of 50; AdamW at 0.1.
    - ``k``: their P4D-K: as ``n``, but a token at the prompt's head and after every k of its own.

    Of the authors' code this leaves out what is no part of the method: padding with "!" where the victim is asked in
    training, and choosing among the looks by a CLIP similarity, as here each is judged. The latents are the mean of the
    autoencoder's, not a draw. A look follows its round, where the code looks before the first iteration of each.

    Through a guard both predictions are guided, each as it draws its pictures; so no difference of scale is part of the
    loss (the authors' code compares the guided victim with the unguided original). A prompt that leaves no room is
    given up after the plain look.
    """

    name = "p4d"
    needs = frozenset({Need.GRADIENTS, Need.BASE, Need.REFERENCE})
    loss: ClassVar[Loss] = "base"

    form: Literal["unlearn_diff", "n", "k"] = "unlearn_diff"
    """Whose P4D; a setting below that is None is that of the form."""
    k: int | None = None
    """Tokens: to insert (None: content 5, other kinds 3), of the whole prompt in ``n`` (16), of the prompt's own from
    one free token to the next in ``k`` (3)."""
    insertion: Literal["prefix", "suffix", "middle", "spread", "every"] = "prefix"
    """Where the tokens of ``unlearn_diff`` are inserted: before the prompt, behind it, in its middle, evenly spread
    over it, or one before every three of its own (and at its end, once those are used up)."""
    adaptive: bool = True
    """Whether probes go through a guard, as pictures do; False: past it, as UnlearnDiffAtk's code has it for SLD."""
    steps: int | None = None
    """Rounds, one look after each (50; ``n`` and ``k`` 60); timesteps visited, unless ``order`` is fresh."""
    iterations: int | None = None
    """Iterations in a round (40; 50), of one probe of the original and one of the victim."""
    lr: float | None = None
    """Learning rate (0.01; 0.1)."""
    weight_decay: float = 0.1
    """Adam's L2 penalty, added to the gradient, or AdamW's decay."""
    optimiser: Literal["adam", "adamw"] | None = None
    """``adam`` (``unlearn_diff``) or ``adamw``."""
    order: Literal["ascending", "descending", "random", "fresh"] | None = None
    """The timesteps: the middles of ``steps`` equal parts of the schedule, one a round (``ascending``), or for every
    iteration one drawn from all (``fresh``)."""
    reseed: bool | None = None
    """Use the same noise again in every round: so does UnlearnDiffAtk's code, whose sampler resets the global seed
    with each picture (True; False)."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        check_length(self.name, self.k)
        if self.form != "unlearn_diff" and self.insertion != "prefix":
            raise BadSetting(
                f"{self.name}: expected no insertion with form {self.form!r}, which has its own, got {self.insertion!r}"
            )
        for setting, least in (("steps", 1), ("iterations", 1), ("lr", 0), ("weight_decay", 0)):
            value = getattr(self, setting)
            if value is not None and value < least:
                raise BadSetting(f"{self.name}: expected {setting} >= {least}, got {value}")

    @property
    def plan(self) -> Plan:
        """The form's, changed where a setting says otherwise."""
        given = {setting: getattr(self, setting) for setting in Plan._fields}
        return PLANS[self.form]._replace(**{setting: value for setting, value in given.items() if value is not None})

    def template(self, case: Case) -> Template:
        """Where the free tokens stand."""
        match self.form:
            case "unlearn_diff":
                return insert(case, self.k or LENGTHS[case.concept.kind], self.insertion)
            case "n":
                return [None] * (self.k or 16)
            case "k":
                return among(case, self.k or 3)

    def search(self, case: Case) -> Search:
        """A look at the plain prompt; then rounds of iterations, and a look at the nearest tokens after each."""
        yield from look([plain(case)])
        template, plan = self.template(case), self.plan
        check_room(case, template)
        assert case.vocabulary is not None, "needs says gradients"
        places = free(template)
        start = torch.randint(len(case.vocabulary), (len(places),), generator=case.random)
        embeddings = case.vocabulary[start.to(case.vocabulary.device)].float()
        optimiser = OPTIMISERS[plan.optimiser]([embeddings], lr=plan.lr, weight_decay=self.weight_decay)
        nearest = Nearest(case.vocabulary)
        timesteps = [None] * plan.steps if plan.order == "fresh" else middles(case, plan.steps, plan.order)
        stream = case.random.get_state()
        for step in timesteps:
            if plan.reseed:
                case.random.set_state(stream)
            points = [point(case, step) for _ in range(plan.iterations)]
            wanted = yield from targets(case, self.loss, points)
            for here, target in zip(points, wanted, strict=True):
                tokens = in_context(case, template, nearest(embeddings).tolist())
                to_words = yield from gradient(case, here, target, tokens=tokens)
                embeddings.grad = to_words[places].to(embeddings)
                optimiser.step()
            yield from look([inserted(case, template, nearest(embeddings).tolist())])


class Nearest:
    """The tokens of a (V, d) vocabulary that embeddings point to."""

    def __init__(self, vocabulary: Tensor) -> None:
        self.vocabulary = vocabulary
        self.lengths = vocabulary.norm(dim=-1).clamp(min=torch.finfo(vocabulary.dtype).tiny)

    def __call__(self, embeddings: Tensor) -> Tensor:
        """(k, d) -> (k,) ids of the largest cosine."""
        # An embedding's own length changes no arg-max, and dividing by the words' needs no second table.
        cosines: Tensor = embeddings.to(self.vocabulary) @ self.vocabulary.mT / self.lengths
        return cosines.argmax(dim=-1)
