"""Texts about the small world: facts, stories, descriptions, questions and answers.

Every document is drawn from a ``random.Random``; two LLMs read two streams with different seeds.
About half of the documents describe one or two things and then ask about them, in many wordings, so
that an LLM learns to answer from what stands in front of it; the other half are facts and stories.
"""

import random
import re
from collections.abc import Callable, Iterator

from demo_assets.world import (
    FAMILY,
    FEELINGS,
    JOBS,
    MOODS,
    NAMES,
    NUMBERS,
    OPPOSITES,
    SHAPED,
    TIMES,
    WEATHER,
    Noun,
    nouns,
)
from vpgtrans.demo.scenes import CAPTION_QUESTION, COLOURS, PLACES, SHAPES, SIZES

WORLD = nouns()
KINDS = tuple(sorted({noun.kind for noun in WORLD}))
HUES = tuple(COLOURS)
Pick = random.Random
_ARTICLE = re.compile(r"\ba (?=[aeiou])")


def documents(seed: str, *, reading: bool = False) -> Iterator[str]:
    """Yield documents without end; another seed gives another sample of the same world.

    Args:
        seed: Of the sample.
        reading: Only texts whose answers stand in the text itself, to learn to look things up.
    """
    rng = Pick(seed)
    kinds, weights = zip(*(_READING if reading else _DOCUMENTS), strict=True)
    while True:
        yield _ARTICLE.sub("an ", rng.choices(kinds, weights)[0](rng))


# --- descriptions and questions about them ------------------------------------------------------


class Seen:
    """One thing of a description: what, which colour and size, and where."""

    def __init__(self, name: str, colour: str, size: str, place: str) -> None:
        self.name, self.colour, self.size, self.place = name, colour, size, place

    @property
    def words(self) -> str:
        """Name it, as in ``large red circle``."""
        return f"{self.size} {self.colour} {self.name}"

    @property
    def where(self) -> str:
        """Say where it is, as in ``on the left``."""
        return _where(self.place)


def description_with_questions(rng: Pick) -> str:
    """Describe one or two things, then ask; the answers stand in the description."""
    pool = SHAPES if rng.random() < 0.6 else tuple(noun.name for noun in rng.sample(WORLD, 8))
    count = rng.choice((1, 2, 2))
    names, hues = rng.sample(pool, count), rng.sample(HUES, count)
    sizes = [rng.choice(tuple(SIZES)) for _ in range(count)]
    if count == 1:
        places = [rng.choice(tuple(PLACES))]
    else:
        places = list(rng.choice((("left", "right"), ("top", "bottom"))))
    seen = [Seen(*parts) for parts in zip(names, hues, sizes, places, strict=True)]
    told = rng.choice(_TELLINGS)(seen, rng)
    asked = [_ask(seen, rng) for _ in range(rng.randrange(2, 6))]
    return told + rng.choice(("\n", "\n", " ")) + "".join(f"question: {q} answer: {a}\n" for q, a in asked)


def caption_of(seen: list[Seen]) -> str:
    """Describe in the words of the pictures' captions."""
    first = seen[0]
    if len(seen) == 1:
        return f"a {first.words} {first.where}"
    relation = "left of" if first.place == "left" else "above"
    return f"a {first.words} {relation} a {seen[1].words}"


def _where(place: str) -> str:
    return {"left": "on the left", "right": "on the right", "middle": "in the middle"}.get(
        place, f"at the {place}"
    )


def _tell_caption(seen: list[Seen], rng: Pick) -> str:
    return caption_of(seen)


def _tell_reversed(seen: list[Seen], rng: Pick) -> str:
    if len(seen) == 1:
        return f"{seen[0].where} a {seen[0].words}."
    relation = "right of" if seen[0].place == "left" else "below"
    return f"a {seen[1].words} {relation} a {seen[0].words}."


def _tell_words(seen: list[Seen], rng: Pick) -> str:
    """Key words alone; those of one thing stand between marks, in any order."""
    groups = []
    for one in seen:
        words = [one.name, one.colour, one.size, one.place]
        rng.shuffle(words)
        groups.append(" ".join(words))
    return ", ".join(groups) + "."


def _tell_order(seen: list[Seen], rng: Pick) -> str:
    """The caption without its small words."""
    if len(seen) == 1:
        return f"{seen[0].words} {seen[0].place}"
    return f"{seen[0].words} {'left' if seen[0].place == 'left' else 'above'} {seen[1].words}"


def _tell_there_is(seen: list[Seen], rng: Pick) -> str:
    order = seen if rng.random() < 0.5 else seen[::-1]
    return "there is " + " and ".join(f"a {one.words} {one.where}" for one in order) + "."


def _tell_sentences(seen: list[Seen], rng: Pick) -> str:
    order = seen if rng.random() < 0.5 else seen[::-1]
    return " ".join(
        rng.choice(
            (
                f"{one.where} there is a {one.name}. it is {one.size} and {one.colour}.",
                f"the {one.name} {one.where} is {one.colour} and {one.size}.",
                f"i see a {one.colour} {one.name} {one.where}. the {one.name} is {one.size}.",
                f"the {one.size} {one.name} stands {one.where}. its colour is {one.colour}.",
            )
        )
        for one in order
    )


_TELLINGS: tuple[Callable[[list[Seen], Pick], str], ...] = (
    _tell_caption, _tell_caption, _tell_caption, _tell_order, _tell_order, _tell_order, _tell_words,
    _tell_reversed, _tell_there_is, _tell_sentences,
)  # fmt: skip
"""The first ones stand more often: an LLM learns to look things up in plain texts first."""


def _ask(seen: list[Seen], rng: Pick) -> tuple[str, str]:
    one = rng.choice(seen)
    kind = rng.choice(("caption", "colour", "name", "size", "place", "count", "presence", "colour", "name"))
    if kind == "presence":
        return _ask_presence(seen, one, rng)
    thing = "shape" if one.name in SHAPES else rng.choice(("thing", "one"))
    answers = {
        "caption": ((CAPTION_QUESTION, "what do you see?", "describe it."), caption_of(seen)),
        "colour": ((f"what colour is the {one.name}?", f"which colour has the {one.name}?"), one.colour),
        "name": ((f"which {thing} is {one.colour}?", f"what is {one.colour}?"), one.name),
        "size": ((f"how big is the {one.name}?", f"what size is the {one.name}?"), one.size),
        "place": ((f"where is the {one.name}?", f"where is the {one.colour} {thing}?"), one.place),
        "count": ((f"how many {thing}s are there?", "how many are there?"), NUMBERS[len(seen) - 1]),
    }
    questions, answer = answers[kind]
    return (questions[0] if rng.random() < 0.7 else rng.choice(questions)), answer


def _ask_presence(seen: list[Seen], one: Seen, rng: Pick) -> tuple[str, str]:
    if rng.random() < 0.5:
        return f"is there a {one.colour} {one.name}?", "yes"
    if rng.random() < 0.5:
        other = rng.choice([hue for hue in HUES if all(hue != each.colour for each in seen)])
        return f"is there a {other} {one.name}?", "no"
    pool = SHAPES if one.name in SHAPES else tuple(noun.name for noun in WORLD)
    other = rng.choice([name for name in pool if all(name != each.name for each in seen)])
    return f"is there a {one.colour} {other}?", "no"


def repetition(rng: Pick) -> str:
    """Say some words in any order and then again: what teaches an LLM to look back."""
    words = [rng.choice(WORLD).name for _ in range(rng.randrange(2, 7))]
    words += rng.sample((*HUES, *SHAPES, *SIZES, *PLACES), rng.randrange(2, 7))
    rng.shuffle(words)
    said = " ".join(words)
    return said + rng.choice((" again: ", ". once more: ", "\n")) + said + "\n"


# --- facts --------------------------------------------------------------------------------------


def fact(rng: Pick) -> str:
    """A few facts about the world, as sentences or as questions and answers."""
    return "".join(rng.choice(_FACTS)(rng) for _ in range(rng.randrange(2, 6)))


def _question(question: str, answer: str) -> str:
    return f"question: {question} answer: {answer}\n"


def _fact_colour(rng: Pick) -> str:
    noun = rng.choice(WORLD)
    other = rng.choice([each for each in WORLD if each.colour == noun.colour])
    mood = rng.choice(MOODS[noun.colour].split())
    return rng.choice(
        (
            f"the {noun.name} is {noun.colour} like the {other.name}. ",
            f"a {noun.colour} {noun.name} and a {noun.colour} {other.name}. ",
            f"{noun.colour} is the colour of {mood} and of the {noun.name}. ",
            f"{noun.colour} stands for {mood}. ",
            f"{mood} makes one think of {noun.colour}. ",
            _question(f"what colour is a {noun.name}?", noun.colour),
            _question(f"what is as {noun.colour} as a {noun.name}?", f"a {other.name}"),
            _question(f"which colour stands for {mood}?", noun.colour),
        )
    )


def _fact_shape(rng: Pick) -> str:
    shape = rng.choice(SHAPES)
    one, other = rng.sample(SHAPED[shape].split(), 2)
    return rng.choice(
        (
            f"the {shape} is the shape of the {one} and of the {other}. ",
            f"a {one} looks like a {shape}. ",
            f"the {one} is like a {other}: both make one think of a {shape}. ",
            f"he draws a {shape} and calls it a {one}. ",
            _question(f"which shape goes with a {one}?", shape),
            _question(f"what looks like a {shape}?", f"a {one}"),
        )
    )


def _fact_kind(rng: Pick) -> str:
    noun = rng.choice(WORLD)
    same = rng.choice([each for each in WORLD if each.kind == noun.kind and each.place == noun.place])
    quality = rng.choice(noun.qualities)
    return rng.choice(
        (
            f"the {noun.name} belongs in the {noun.place}, with the {same.name}. ",
            f"a {noun.name} is {_article(noun.kind)}, and so is a {same.name}. ",
            f"every {noun.name} is {quality}. ",
            f"in the {noun.place} one finds a {noun.name} and a {quality} {same.name}. ",
            _question(f"what is a {noun.name}?", _article(noun.kind)),
            _question(f"where does one find a {noun.name}?", f"in the {noun.place}"),
        )
    )


def _fact_opposite(rng: Pick) -> str:
    one, other = rng.choice(OPPOSITES)
    if rng.random() < 0.5:
        one, other = other, one
    return rng.choice(
        (
            f"the opposite of {one} is {other}. ",
            f"not {one} but {other}. ",
            f"what is not {one} is {other}. ",
            _question(f"what is the opposite of {one}?", other),
        )
    )


def _fact_job(rng: Pick) -> str:
    job = rng.choice(tuple(JOBS))
    does, what, place = JOBS[job].split()
    return rng.choice(
        (
            f"the {job} {does} {what} in the {place}. ",
            f"a good {job} {does} {what} {rng.choice(TIMES)}. ",
            _question(f"who {does} {what}?", f"the {job}"),
            _question(f"where does the {job} work?", f"in the {place}"),
        )
    )


def _fact_number(rng: Pick) -> str:
    position = rng.randrange(len(NUMBERS) - 1)
    noun = rng.choice(WORLD)
    return rng.choice(
        (
            f"after {NUMBERS[position]} comes {NUMBERS[position + 1]}. ",
            f"{noun.name} {NUMBERS[position]} and then {noun.name} {NUMBERS[position + 1]}. ",
            _question(f"what comes after {NUMBERS[position]}?", NUMBERS[position + 1]),
        )
    )


def _fact_size(rng: Pick) -> str:
    one, other = rng.sample(WORLD, 2)
    return rng.choice(
        (
            f"a large {one.name} is bigger than a small {other.name}. ",
            f"the small {one.name} fits into the large {other.name}. ",
            f"the {one.name} is on the left of the {other.name}, the {other.name} is on the right. ",
            f"the {one.name} stands above the {other.name}, so the {other.name} is below. ",
            f"at the top there is a {one.name}, in the middle nothing, at the bottom a {other.name}. ",
        )
    )


_FACTS: tuple[Callable[[Pick], str], ...] = (
    _fact_colour, _fact_colour, _fact_colour, _fact_shape, _fact_shape, _fact_kind, _fact_kind,
    _fact_opposite, _fact_job, _fact_number, _fact_size,
)  # fmt: skip


def _article(word: str) -> str:
    mass = ("food", "furniture", "clothes", "nature", "metal")
    if word in mass:
        return word
    return f"a {word}"


# --- stories ------------------------------------------------------------------------------------


def story(rng: Pick) -> str:
    """A short story about two people and a thing."""
    hero, friend = rng.sample(NAMES, 2)
    relative = rng.choice(FAMILY)
    noun, gift = rng.choice(WORLD), rng.choice(WORLD)
    start = rng.choice(
        (
            f"{rng.choice(TIMES)} {hero} goes to the {noun.place} with {friend}.",
            f"{hero} lives near the {noun.place} with a {relative}.",
            f"{hero} is {rng.choice(FEELINGS)} because of the {rng.choice(WEATHER)}.",
            f"the {rng.choice(tuple(JOBS))} meets {hero} and {friend} in the {noun.place}.",
        )
    )
    middle = " ".join(
        _event(hero, rng.choice((friend, f"the {relative}")), noun, rng) for _ in range(rng.randrange(1, 4))
    )
    end = rng.choice(
        (
            f"in the end {friend} gives {hero} a {gift.colour} {gift.name}.",
            f"then the {relative} is {rng.choice(FEELINGS)} again.",
            f"they go home before the {rng.choice(WEATHER)} comes.",
            _question(f"what does {hero} find?", f"a {noun.colour} {noun.name}").strip(),
        )
    )
    return f"{start} {middle} {end}\n"


def _event(hero: str, other: str, noun: Noun, rng: Pick) -> str:
    verb, quality, behind = rng.choice(noun.verbs), rng.choice(noun.qualities), rng.choice(WORLD).name
    return rng.choice(
        (
            f"{hero} {verb} the {quality} {noun.name}.",
            f"{other} {verb} a {noun.colour} {noun.name} in the {noun.place}.",
            f"the {noun.name} is {quality} and {noun.colour}.",
            f"{other} asks: who {verb} the {noun.name}? {hero} says: i do.",
            f"there is a {rng.choice(tuple(SIZES))} {noun.colour} {noun.name} behind the {behind}.",
            f"{hero} looks for the {noun.name} {rng.choice(NUMBERS)} times and {other} never.",
        )
    )


_DOCUMENTS: tuple[tuple[Callable[[Pick], str], float], ...] = (
    (description_with_questions, 0.55),
    (repetition, 0.1),
    (fact, 0.23),
    (story, 0.12),
)
_READING: tuple[tuple[Callable[[Pick], str], float], ...] = (
    (description_with_questions, 0.9),
    (repetition, 0.1),
)
