"""What a toy scene consists of, which combinations are held out, and how scenes are drawn at random."""

from dataclasses import dataclass, replace
from itertools import product
from random import Random
from typing import Literal

COLOURS = ("red", "yellow", "green", "blue", "purple", "pink", "brown", "black")
TEXTURES = ("solid", "striped", "dotted", "hollow")
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
SIZES = ("small", "large")

Relation = Literal["left", "right", "above", "below"]
OPPOSITE: dict[Relation, Relation] = {"left": "right", "right": "left", "above": "below", "below": "above"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Colour, texture and shape: a class of the zero-shot evaluations."""

    colour: str
    texture: str
    shape: str

    @property
    def held_out(self) -> bool:
        """True for a quarter of the kinds: none is in a training image, every two of their values are.

        A Latin square over the four textures: each colour and shape meet in three of them.
        """
        total = COLOURS.index(self.colour) + TEXTURES.index(self.texture) + SHAPES.index(self.shape)
        return total % len(TEXTURES) == 0


KINDS = tuple(Kind(colour=c, texture=t, shape=s) for c, t, s in product(COLOURS, TEXTURES, SHAPES))
"""Every kind; its place here is its class id."""
SEEN_KINDS = tuple(kind for kind in KINDS if not kind.held_out)
"""The kinds of which training images are made."""
HELD_OUT_KINDS = tuple(kind for kind in KINDS if kind.held_out)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """One object, before it has a place."""

    kind: Kind
    size: str

    def value(self, attribute: str) -> str:
        """The value of `colour`, `texture`, `shape` or `size`."""
        value: str = self.size if attribute == "size" else getattr(self.kind, attribute)
        return value

    def having(self, attribute: str, value: str) -> "Thing":
        """The same thing but for one attribute."""
        if attribute == "size":
            return replace(self, size=value)
        return replace(self, kind=replace(self.kind, **{attribute: value}))


ATTRIBUTES = {"colour": COLOURS, "texture": TEXTURES, "shape": SHAPES, "size": SIZES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One to three things and how the first stands to each of the others.

    Args:
        relations: one entry for each thing after the first; `left` says: the first is left of that thing.
        centres: (x, y) of each thing in parts of the image's edge, from the upper left corner.
    """

    things: tuple[Thing, ...]
    relations: tuple[Relation, ...]
    centres: tuple[tuple[float, float], ...]


def random_size(rng: Random) -> str:
    """Small or large."""
    return rng.choice(SIZES)


def single_scene(kind: Kind, rng: Random) -> Scene:
    """One thing, anywhere."""
    centre = (rng.uniform(0.25, 0.75), rng.uniform(0.25, 0.75))
    return Scene(things=(Thing(kind=kind, size=random_size(rng)),), relations=(), centres=(centre,))


def scene_of(kinds: list[Kind], rng: Random) -> Scene:
    """Two things side by side or one above the other; a third stands on the other axis of the first."""
    things = tuple(Thing(kind=kind, size=random_size(rng)) for kind in kinds)
    horizontal: Relation = rng.choice(("left", "right"))
    vertical: Relation = rng.choice(("above", "below"))
    relations = (horizontal, vertical) if rng.random() < 0.5 else (vertical, horizontal)
    return Scene(
        things=things,
        relations=relations[: len(things) - 1],
        centres=_centres(relations[: len(things) - 1], rng),
    )


def _centres(relations: tuple[Relation, ...], rng: Random) -> tuple[tuple[float, float], ...]:
    """Places half an edge apart, jittered so little that each relation is the only one that holds."""
    steps: dict[Relation, tuple[float, float]] = {
        "left": (0.5, 0.0),
        "right": (-0.5, 0.0),
        "above": (0.0, 0.5),
        "below": (0.0, -0.5),
    }
    first = [rng.uniform(0.25, 0.75), rng.uniform(0.25, 0.75)]
    for relation in relations:
        axis = 0 if relation in ("left", "right") else 1
        first[axis] = 0.25 if sum(steps[relation]) > 0 else 0.75
    places = [(0.0, 0.0), *(steps[relation] for relation in relations)]
    return tuple(
        (first[0] + x + rng.uniform(-0.02, 0.02), first[1] + y + rng.uniform(-0.02, 0.02)) for x, y in places
    )


def training_scene(rng: Random, *, shares: tuple[float, float, float]) -> Scene:
    """One, two or three things with the given shares, their kinds seen ones and all different."""
    (count,) = rng.choices((1, 2, 3), weights=shares)
    kinds = rng.sample(SEEN_KINDS, count)
    return single_scene(kinds[0], rng) if count == 1 else scene_of(kinds, rng)


def choice_scene(rng: Random, *, kinds: tuple[Kind, ...] = SEEN_KINDS) -> Scene:
    """Two things of some kinds that differ in colour, texture and shape, so that every swap is a lie."""
    while True:
        first, second = rng.sample(kinds, 2)
        shared = (first.colour == second.colour, first.texture == second.texture, first.shape == second.shape)
        if not any(shared):
            return scene_of([first, second], rng)
