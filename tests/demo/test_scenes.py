"""Generated pictures: the same on every call, and every text true of the pixels."""

import json
from collections import Counter, deque

import numpy as np
import pytest
from PIL import Image

from vpgtrans.demo.dataset import DEMO_SPLITS, write_dataset
from vpgtrans.demo.pictures import draw_scene
from vpgtrans.demo.scenes import (
    CAPTION_QUESTION,
    COLOURS,
    PLACES,
    SHAPES,
    SIDE,
    SIZES,
    Scene,
    Thing,
    caption,
    make_scene,
    texts,
)

SCENES = [make_scene(f"test/{number}") for number in range(300)]


def pixels_of(scene: Scene) -> np.ndarray:
    return np.asarray(draw_scene(scene), dtype=int)


def where_is(pixels: np.ndarray, colour: str) -> np.ndarray:
    """Pixels that have exactly a colour's value, as (row, column)."""
    return np.argwhere((pixels == COLOURS[colour]).all(axis=2))


def scene_of(*things: Thing, relation=None) -> Scene:
    return Scene("by hand", things, relation, (150, 150, 150), 0.0)


def holes(mask: np.ndarray) -> int:
    """Number of background regions beyond the outer one."""
    left = ~mask
    regions = 0
    while left.any():
        regions += 1
        queue = deque([tuple(np.argwhere(left)[0])])
        left[queue[0]] = False
        while queue:
            row, column = queue.popleft()
            for r, c in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                if 0 <= r < mask.shape[0] and 0 <= c < mask.shape[1] and left[r, c]:
                    left[r, c] = False
                    queue.append((r, c))
    return regions - 1


def test_the_same_seed_gives_the_same_scene_texts_and_pixels():
    for number in range(20):
        one, other = make_scene(f"same/{number}"), make_scene(f"same/{number}")
        assert one == other
        assert texts(one) == texts(other)
        assert (pixels_of(one) == pixels_of(other)).all()


def test_other_seeds_give_other_pictures():
    pictures = {pixels_of(scene).tobytes() for scene in SCENES}
    assert len(pictures) == len(SCENES)


def test_a_known_seed_keeps_its_words():
    """Guards against a change that would silently make the shipped models' data another one."""
    first = make_scene("0/train/0")
    assert caption(first) == "a large black square left of a large blue arrow"
    assert texts(first)[0].kind == "caption"


def test_every_word_of_every_list_comes_up():
    seen = Counter(
        word
        for scene in SCENES
        for thing in scene.things
        for word in (thing.size, thing.colour, thing.shape, thing.place)
    )
    assert set(seen) == {*SIZES, *COLOURS, *SHAPES, *PLACES}
    assert min(seen[colour] for colour in COLOURS) > 20
    assert min(seen[shape] for shape in SHAPES) > 20


def test_one_or_two_things_that_differ_in_colour_and_shape():
    assert {len(scene.things) for scene in SCENES} == {1, 2}
    for scene in SCENES:
        assert len({thing.shape for thing in scene.things}) == len(scene.things)
        assert len({thing.colour for thing in scene.things}) == len(scene.things)
        assert (scene.relation is None) == (len(scene.things) == 1)


@pytest.mark.parametrize("number", range(60))
def test_each_colour_is_where_its_thing_is_said_to_be(number):
    scene = SCENES[number]
    pixels = pixels_of(scene)
    for thing in scene.things:
        found = where_is(pixels, thing.colour)
        assert len(found) > 20, f"{thing.colour} is missing from {caption(scene)}"
        row, column = found.mean(axis=0)
        share_x, share_y = PLACES[thing.place]
        assert abs(column - share_x * SIDE) < 10, (thing, column)
        assert abs(row - share_y * SIDE) < 10, (thing, row)


@pytest.mark.parametrize("number", range(60))
def test_no_other_colour_of_the_list_is_in_the_picture(number):
    scene = SCENES[number]
    pixels = pixels_of(scene)
    there = {thing.colour for thing in scene.things}
    # black and white may come up as single grains of noise
    others = [colour for colour in COLOURS if colour not in there]
    assert all(len(where_is(pixels, colour)) < 4 for colour in others)


def drawn(shape: str, size: str = "large") -> np.ndarray:
    """Which pixels a red thing in the middle touches."""
    pixels = pixels_of(scene_of(Thing(size, "red", shape, "middle", 32, 32, SIZES[size])))
    return (pixels != (150, 150, 150)).any(axis=2)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_large_thing_covers_more_than_a_small_one_of_the_same_shape(shape):
    assert drawn(shape, "large").sum() > 2 * drawn(shape, "small").sum() > 0


# (row, column) pixels that a large shape in the middle (centre 32, half width 13) covers, and does not
INSIDE_OUTSIDE = {
    "circle": ([(32, 32), (32, 20), (20, 32)], [(21, 21), (42, 42)]),
    "square": ([(23, 23), (41, 41), (23, 41)], [(19, 32)]),
    "triangle": ([(41, 22), (41, 42), (22, 32)], [(22, 22), (22, 42)]),
    "star": ([(32, 32), (20, 32)], [(44, 32), (22, 22)]),
    "heart": ([(32, 32), (24, 24), (24, 40)], [(44, 22), (44, 42), (20, 32)]),
    "ring": ([(32, 21), (21, 32)], [(32, 32), (21, 21)]),
    "cross": ([(32, 21), (21, 32), (32, 32)], [(23, 23), (41, 41)]),
    "diamond": ([(32, 32), (20, 32), (32, 24)], [(23, 23), (41, 41)]),
    "moon": ([(32, 21), (42, 28)], [(32, 38), (21, 21)]),
    "arrow": ([(32, 44), (32, 21), (24, 34)], [(24, 22), (24, 44)]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_covers_what_it_should(shape):
    mask = drawn(shape)
    inside, outside = INSIDE_OUTSIDE[shape]
    assert [mask[point] for point in inside] == [True] * len(inside)
    assert [mask[point] for point in outside] == [False] * len(outside)
    assert holes(mask) == (1 if shape == "ring" else 0)


def test_captions_by_hand():
    red = Thing("large", "red", "circle", "left", 16, 32, 13)
    blue = Thing("small", "blue", "star", "right", 48, 32, 7)
    assert caption(scene_of(red, blue, relation="left of")) == "a large red circle left of a small blue star"
    assert caption(scene_of(red, blue, relation="above")) == "a large red circle above a small blue star"
    assert caption(scene_of(red)) == "a large red circle on the left"
    top = Thing("small", "green", "moon", "top", 32, 16, 7)
    assert caption(scene_of(top)) == "a small green moon at the top"
    middle = Thing("small", "green", "moon", "middle", 32, 32, 7)
    assert caption(scene_of(middle)) == "a small green moon in the middle"


def answer_by_looking(scene: Scene, question: str) -> str:
    """Answer from the scene's things alone, written apart from the generator."""
    words = question.rstrip("?").split()
    if question == CAPTION_QUESTION:
        return caption(scene)
    if question.startswith("how many"):
        return {1: "one", 2: "two"}[len(scene.things)]
    if question.startswith("is there"):
        asked = (words[-2], words[-1])
        return "yes" if asked in [(thing.colour, thing.shape) for thing in scene.things] else "no"
    [thing] = [thing for thing in scene.things if words[-1] in (thing.colour, thing.shape)]
    return {
        "what colour": thing.colour,
        "which shape": thing.shape,
        "how big": thing.size,
        "where is": thing.place,
    }[" ".join(words[:2])]


def test_every_answer_is_true():
    kinds = Counter()
    for scene in SCENES:
        for text in texts(scene, questions=6):
            assert text.answer == answer_by_looking(scene, text.question), (caption(scene), text)
            kinds[text.kind] += 1
    assert set(kinds) == {"caption", "colour", "shape", "size", "place", "count", "presence"}
    assert set(kinds.values()) == {len(SCENES)}


def test_yes_and_no_are_about_equally_frequent():
    answers = Counter(
        text.answer for scene in SCENES for text in texts(scene, questions=6) if text.kind == "presence"
    )
    assert set(answers) == {"yes", "no"}
    assert 0.35 < answers["yes"] / answers.total() < 0.65


def test_an_orange_thing_gets_its_article():
    questions = [text.question for scene in SCENES for text in texts(scene, questions=6)]
    assert any("is there an orange" in question for question in questions)
    assert not any(" a orange" in question for question in questions)


def test_a_dataset_on_disk(tmp_path):
    files = write_dataset(tmp_path, {"train": 6, "test": 3}, seed=4)
    assert set(files) == {"train", "test"}
    lines = [json.loads(line) for line in files["train"].read_text().splitlines()]
    assert len(lines) == 6 * 5
    assert [line["question"] for line in lines[::5]] == [CAPTION_QUESTION] * 6
    for number in range(6):
        name = f"train/{number:05d}.png"
        assert lines[5 * number]["image"] == name
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (SIDE, SIDE)
            assert picture.mode == "RGB"
            assert (np.asarray(picture) == pixels_of(make_scene(f"4/train/{number}"))).all()
        assert lines[5 * number]["answer"] == caption(make_scene(f"4/train/{number}"))
    assert not list(tmp_path.glob("*.tmp"))


def test_splits_share_no_picture(tmp_path):
    write_dataset(tmp_path, {"train": 40, "validation": 20, "test": 20})
    names = [path.read_bytes() for path in tmp_path.rglob("*.png")]
    assert len(set(names)) == 80


def test_another_seed_writes_other_pictures(tmp_path):
    write_dataset(tmp_path / "a", {"test": 2}, seed=0)
    write_dataset(tmp_path / "b", {"test": 2}, seed=1)
    assert (tmp_path / "a/test/00000.png").read_bytes() != (tmp_path / "b/test/00000.png").read_bytes()


def test_the_demo_has_the_three_splits():
    assert list(DEMO_SPLITS) == ["train", "validation", "test"]
    assert all(count > 0 for count in DEMO_SPLITS.values())


def test_the_packages_own_reader_understands_it(tmp_path):
    from vpgtrans.data.load import load_records
    from vpgtrans.recipe import DataSource

    files = write_dataset(tmp_path, {"test": 3})
    records = load_records(DataSource(path=str(files["test"])))
    assert [record.id for record in records] == [f"test/{number:05d}.png" for number in range(3)]
    for number, record in enumerate(records):
        wanted = [(text.question, text.answer) for text in texts(make_scene(f"0/test/{number}"))]
        assert [(text.prompt, text.answer) for text in record.texts] == wanted
