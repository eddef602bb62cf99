"""What stands in a generated picture, and how it is put into words.

A scene holds one or two things. Everything is drawn from one seed: the same seed gives the same
scene, caption and questions on every machine (``random.Random`` seeded with a string).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 30, 38),
    "orange": (247, 140, 22),
    "yellow": (250, 224, 40),
    "green": (36, 150, 52),
    "blue": (34, 74, 208),
    "purple": (126, 40, 168),
    "pink": (246, 130, 186),
    "brown": (112, 66, 28),
    "black": (14, 14, 16),
    "white": (252, 252, 252),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "diamond", "moon", "arrow")
SIZES: dict[str, float] = {"small": 7.5, "large": 13.0}
"""Radius in pixels of each size word."""
PLACES: dict[str, tuple[float, float]] = {
    "left": (0.25, 0.5),
    "right": (0.75, 0.5),
    "top": (0.5, 0.25),
    "bottom": (0.5, 0.75),
    "middle": (0.5, 0.5),
}
"""Centre of each place as a share of the picture's side."""
SIDE = 64
"""Side of a picture in pixels."""
CAPTION_QUESTION = "what is in the picture?"

Relation = Literal["left of", "above"]


@dataclass(frozen=True, slots=True)
class Thing:
    """One coloured shape; ``x`` and ``y`` are its centre and ``radius`` its half width, in pixels."""

    size: str
    colour: str
    shape: str
    place: str
    x: float
    y: float
    radius: float

    @property
    def words(self) -> str:
        """Name it, as in ``large red circle``."""
        return f"{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture's content; with two things the first stands left of or above the second."""

    seed: str
    things: tuple[Thing, ...]
    relation: Relation | None
    background: tuple[int, int, int]
    noise: float
    """Standard deviation of the background's grain, 0 to 255."""


@dataclass(frozen=True, slots=True)
class Text:
    """A question about a picture and its answer; ``kind`` says what is asked for."""

    kind: str
    question: str
    answer: str


def make_scene(seed: str) -> Scene:
    """Draw a scene's content from a seed: two things in two of three pictures, else one."""
    rng = random.Random(f"scene {seed}")
    count = rng.choice((1, 2, 2))
    shapes, colours = rng.sample(SHAPES, count), rng.sample(tuple(COLOURS), count)
    relation: Relation | None = rng.choice(("left of", "above")) if count == 2 else None
    if relation is None:
        places = [rng.choice(tuple(PLACES))]
    else:
        places = ["left", "right"] if relation == "left of" else ["top", "bottom"]
    things = tuple(
        _thing(rng, shape, colour, place)
        for shape, colour, place in zip(shapes, colours, places, strict=True)
    )
    level = rng.randrange(120, 190)
    background = (_tint(rng, level), _tint(rng, level), _tint(rng, level))
    return Scene(seed, things, relation, background, noise=rng.choice((0.0, 4.0, 9.0)))


def caption(scene: Scene) -> str:
    """Describe a scene, as in ``a large red circle left of a small blue star``."""
    first = scene.things[0]
    if scene.relation is None:
        return f"a {first.words} {_where(first.place)}"
    return f"a {first.words} {scene.relation} a {scene.things[1].words}"


def texts(scene: Scene, questions: int = 4) -> list[Text]:
    """Return the caption (asked for by ``CAPTION_QUESTION``) and some questions, all of other kinds.

    Args:
        scene: What the picture shows.
        questions: How many questions beside the caption, at most 6.
    """
    rng = random.Random(f"texts {scene.seed}")
    kinds = rng.sample(tuple(_QUESTIONS), questions)
    asked = [Text(kind, *_QUESTIONS[kind](scene, rng)) for kind in kinds]
    return [Text("caption", CAPTION_QUESTION, caption(scene)), *asked]


def _thing(rng: random.Random, shape: str, colour: str, place: str) -> Thing:
    size = rng.choice(tuple(SIZES))
    x, y = (share * SIDE + rng.uniform(-1.0, 1.0) for share in PLACES[place])
    return Thing(size, colour, shape, place, round(x, 2), round(y, 2), SIZES[size] + rng.uniform(-0.4, 0.4))


def _tint(rng: random.Random, level: int) -> int:
    return level + rng.randrange(-12, 13)


def _where(place: str) -> str:
    return {"left": "on the left", "right": "on the right", "middle": "in the middle"}.get(
        place, f"at the {place}"
    )


def _ask_colour(scene: Scene, rng: random.Random) -> tuple[str, str]:
    thing = rng.choice(scene.things)
    return f"what colour is the {thing.shape}?", thing.colour


def _ask_shape(scene: Scene, rng: random.Random) -> tuple[str, str]:
    thing = rng.choice(scene.things)
    return f"which shape is {thing.colour}?", thing.shape


def _ask_size(scene: Scene, rng: random.Random) -> tuple[str, str]:
    thing = rng.choice(scene.things)
    return f"how big is the {thing.shape}?", thing.size


def _ask_place(scene: Scene, rng: random.Random) -> tuple[str, str]:
    thing = rng.choice(scene.things)
    return f"where is the {thing.shape}?", thing.place


def _ask_count(scene: Scene, rng: random.Random) -> tuple[str, str]:
    return "how many shapes are there?", ("one", "two")[len(scene.things) - 1]


def _ask_presence(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Ask for a thing that is there, or for one that differs from it in its colour or its shape."""
    thing = rng.choice(scene.things)
    if rng.random() < 0.5:
        return _is_there(thing.colour, thing.shape), "yes"
    colours = [colour for colour in COLOURS if all(colour != other.colour for other in scene.things)]
    shapes = [shape for shape in SHAPES if all(shape != other.shape for other in scene.things)]
    if rng.random() < 0.5:
        return _is_there(rng.choice(colours), thing.shape), "no"
    return _is_there(thing.colour, rng.choice(shapes)), "no"


def _is_there(colour: str, shape: str) -> str:
    return f"is there {'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}?"


_QUESTIONS: dict[str, Callable[[Scene, random.Random], tuple[str, str]]] = {
    "colour": _ask_colour,
    "shape": _ask_shape,
    "size": _ask_size,
    "place": _ask_place,
    "count": _ask_count,
    "presence": _ask_presence,
}
