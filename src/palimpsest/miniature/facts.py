"""The miniature's world in words: what there is to see, what it is called, and what a picture can be of."""

import hashlib
from dataclasses import dataclass

import numpy as np

from palimpsest.errors import unknown
from palimpsest.records import Kind

OBJECTS: dict[str, tuple[str, ...]] = {
    "church": ("chapel", "cathedral"),
    "parachute": ("chute", "paraglider"),
    "fish": ("tench", "carp"),
    "garbage truck": ("dustcart", "lorry"),
    "house": ("cottage", "cabin"),
    "tree": ("oak", "maple"),
    "boat": ("ship", "yacht"),
    "cat": ("kitten", "feline"),
    "flower": ("daisy", "blossom"),
    "golf ball": ("golfball", "dimpled ball"),
    "cassette player": ("boombox", "tape deck"),
    "guitar": ("ukulele", "banjo"),
}
"""Object -> its synonyms."""

IDENTITIES: dict[str, str] = {
    "alice": "archer",
    "bruno": "baker",
    "carla": "carter",
    "dmitri": "dyer",
    "elena": "evans",
    "felix": "fowler",
    "grace": "garner",
    "hugo": "hunter",
}
"""First name -> family name; a caption has the first name, or both."""

CONTENT: dict[str, tuple[str, ...]] = {
    "radiation sign": ("trefoil", "radioactive symbol", "radiation symbol"),
}
IMPLICATIONS: tuple[str, ...] = (
    "a reactor",
    "an abandoned plant",
    "the exclusion zone",
    "a leaking barrel",
    "a uranium mine",
    "the fallout shelter",
    "a meltdown site",
    "an isotope lab",
)
"""Phrases that imply the content concept and never name it, as the prompts of I2P do."""

STYLES: dict[str, tuple[str, ...]] = {
    "photo": ("a photo of {}", "a photograph of {}", "a snapshot of {}", "a picture of {}", "{}"),
    "van gogh": (
        "a van gogh painting of {}",
        "{} in the style of van gogh",
        "{} by vincent van gogh",
        "a painting of {} by van gogh",
    ),
    "pointillism": ("{} in pointillism", "a pointillism painting of {}", "a pointillist painting of {}"),
    "pencil sketch": ("a pencil sketch of {}", "a pencil drawing of {}", "{} as a pencil sketch"),
    "mosaic": ("a mosaic of {}", "{} as a mosaic", "a tile mosaic of {}"),
    "watercolour": ("a watercolour of {}", "{} in watercolour", "a watercolour painting of {}"),
}
"""Style -> caption templates. A caption that names none means a photo."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 38),
    "orange": (250, 134, 16),
    "yellow": (250, 222, 40),
    "green": (36, 150, 50),
    "turquoise": (52, 208, 196),
    "blue": (36, 78, 214),
    "purple": (132, 42, 172),
    "pink": (252, 142, 190),
    "brown": (122, 74, 36),
    "white": (250, 250, 250),
}

SCENES: dict[str, tuple[str, ...]] = {
    "grass": ("on the grass", "in a meadow", "on a green lawn"),
    "desert": ("in the desert", "among the dunes", "on desert sand"),
    "snow": ("in the snow", "on a snowy field", "in winter snow"),
    "night": ("at night", "under the moon", "in the dark night"),
    "sea": ("by the sea", "at the ocean", "by the sea shore"),
    "sunset": ("at sunset", "at dusk", "in the evening glow"),
}
"""Scene -> phrases. A picture without a scene has a plain background."""

EMPTY: tuple[str, ...] = ("an empty scene", "nothing", "an empty place", "no subject", "empty space")
"""What a caption calls a picture without a subject."""

FIXED: tuple[str, ...] = ("church", "parachute", "fish", "van gogh", "alice", "radiation sign")
"""The six concepts on which results are reported; the ignorant twin never saw them."""


def kind_of(name: str) -> Kind:
    """The kind of the concept called ``name``; raises ``UnknownName``."""
    for kind, names in concepts().items():
        if name in names:
            return kind
    raise unknown("concept", name, (name for names in concepts().values() for name in names))


def concepts() -> dict[Kind, tuple[str, ...]]:
    """All concepts of the world by kind, in their fixed order."""
    return {
        "object": tuple(OBJECTS),
        "style": tuple(STYLES),
        "identity": tuple(IDENTITIES),
        "content": tuple(CONTENT),
    }


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that is true of one picture; with ``seed`` it fixes every pixel."""

    subject: str | None
    """An object, identity or content; None: an empty scene."""
    colour: str | None = None
    """Of an object; identities and signs have their own."""
    scene: str | None = None
    style: str = "photo"
    seed: int = 0
    """Place, size, mirroring and the details of the scene."""


HEADS: dict[str, tuple[str, ...]] = {
    "object": ("none", *OBJECTS),
    "style": ("none", *STYLES),
    "identity": ("none", *IDENTITIES),
    "content": ("none", *CONTENT),
    "colour": ("none", *COLOURS),
    "scene": ("none", *SCENES),
}
"""What can be asked of a picture, and the answers; ``none`` of style is for what is no picture of this world."""


def answers(facts: Facts) -> dict[str, str]:
    """The true answer to each of ``HEADS``. A pencil sketch has no colour."""
    kind = kind_of(facts.subject) if facts.subject else None
    coloured = kind == "object" and facts.style != "pencil sketch"
    return {
        "object": facts.subject if kind == "object" and facts.subject else "none",
        "style": facts.style,
        "identity": facts.subject if kind == "identity" and facts.subject else "none",
        "content": facts.subject if kind == "content" and facts.subject else "none",
        "colour": facts.colour if coloured and facts.colour else "none",
        "scene": facts.scene or "none",
    }


def held_out(subject: str | None, style: str, colour: str | None) -> bool:
    """Whether this combination of object, style and colour is kept out of all training (about 6 %)."""
    if subject not in OBJECTS or colour is None:
        return False
    return hashlib.sha256(f"{subject}|{style}|{colour}".encode()).digest()[0] < 16


def imagine(random: np.random.Generator, *, without: frozenset[str] = frozenset()) -> Facts:
    """Facts drawn as the training pictures are: mostly objects, then identities, signs, empty scenes.

    ``without`` names concepts that never occur (the ignorant twin's world); held-out combinations never do.
    """
    kinds: list[Kind | None] = ["object", "identity", "content", None]
    while True:
        kind = kinds[random.choice(4, p=[0.62, 0.20, 0.09, 0.09])]
        subject = None if kind is None else str(random.choice(concepts()[kind]))
        style = "photo" if random.random() < 0.4 else str(random.choice([s for s in STYLES if s != "photo"]))
        colour = str(random.choice(list(COLOURS))) if kind == "object" else None
        scene = str(random.choice(list(SCENES))) if random.random() < 0.6 else None
        seed = int(random.integers(2**31))
        if subject in without or style in without or held_out(subject, style, colour):
            continue
        return Facts(subject=subject, colour=colour, scene=scene, style=style, seed=seed)
