"""Rows of texts behind shared prefixes: layouts and masks by hand, and any batch gives all its texts back."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vpgtrans.vlm.packing import IGNORED, PackedRows, Text, additive, block_mask, pack_texts

IMAGE = 99
NUM_IMAGE = 3


def text(image: int, tail: list[int], num_prompt: int = 0, lead: tuple[int, ...] = (1, 99, 99, 99)) -> Text:
    labels = [IGNORED] * (len(lead) + num_prompt) + tail[num_prompt:]
    return Text(image, [*lead, *tail], labels)


def rows_of(texts: list[Text], **settings: Any) -> PackedRows:
    rows = pack_texts(texts, IMAGE, **settings)
    assert rows is not None
    return rows


def spoken(rows: PackedRows) -> list[tuple[int, tuple[int, ...], int]]:
    """Every label as (image, all tokens that its place sees in order, label): what an LLM reads."""
    mask = block_mask(rows)[:, 0]
    width = rows.input_ids.shape[1]
    found = []
    for place, label in zip(rows.place_of_label.tolist(), rows.labels.tolist(), strict=True):
        row, column = divmod(int(rows.places[place]), width)
        seen = mask[row, column].nonzero().flatten()
        assert rows.position_ids[row, seen].tolist() == list(range(len(seen)))
        segment = int(rows.segment[row, column])
        found.append((int(rows.image_index[segment - 1]), tuple(rows.input_ids[row, seen].tolist()), label))
    return sorted(found)


def wanted(texts: list[Text]) -> list[tuple[int, tuple[int, ...], int]]:
    """The same from the texts alone."""
    return sorted(
        (one.image, tuple(one.ids[:place]), label)
        for one in texts
        for place, label in enumerate(one.labels)
        if label != IGNORED
    )


def test_two_texts_of_one_image_by_hand() -> None:
    rows = rows_of([text(0, [5, 6, 7, 2]), text(0, [8, 2])])
    # the last token of a text predicts nothing and is not read
    assert rows.input_ids.tolist() == [[1, 99, 99, 99, 5, 6, 7, 8]]
    assert rows.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6, 4]]
    assert rows.segment.tolist() == [[1] * 8]
    assert rows.text.tolist() == [[0, 0, 0, 0, 1, 1, 1, 2]]
    assert rows.image_index.tolist() == [0]
    # both texts' first tokens follow the last image place, whose logits are made once
    assert rows.places.tolist() == [3, 4, 5, 6, 7]
    assert rows.place_of_label.tolist() == [0, 1, 2, 3, 0, 4]
    assert rows.labels.tolist() == [5, 6, 7, 2, 8, 2]
    assert rows.max_position == 6
    assert block_mask(rows)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0, 0, 0, 1],
    ]
    window = block_mask(rows, window=2)[0, 0].int().tolist()
    assert window[6] == [0, 0, 0, 0, 0, 1, 1, 0]
    assert window[7] == [0, 0, 0, 1, 0, 0, 0, 1], "the window counts restarted positions"


def test_two_images_stand_apart_in_one_row_and_padding_sees_no_text() -> None:
    rows = rows_of([text(4, [5, 2]), text(0, [6, 7, 8, 2]), text(4, [9, 2]), text(2, [3, 2])])
    spans = {(int(s), int(t)) for s, t in zip(rows.segment.flatten(), rows.text.flatten(), strict=True) if s}
    assert len({segment for segment, _ in spans}) == 3
    mask = block_mask(rows)[:, 0]
    across = rows.segment[:, :, None] != rows.segment[:, None, :]
    assert not (mask & across).any()
    assert mask.any(-1).all(), "a token that sees nothing makes NaN"


def test_a_common_beginning_of_the_prompts_is_shared_with_the_image() -> None:
    rows = rows_of([text(0, [5, 6, 7, 2], 2), text(0, [5, 6, 8, 2], 2)])
    assert rows.input_ids.tolist() == [[1, 99, 99, 99, 5, 6, 7, 8]]
    assert rows.text.tolist() == [[0, 0, 0, 0, 0, 0, 1, 2]]


@pytest.mark.parametrize("lead", [(1, 99, 99, 99), (99, 99, 99, 1), (99, 99, 99)])
def test_every_layout_shares_all_that_comes_before_the_texts(lead: tuple[int, ...]) -> None:
    texts = [text(0, [5, 2], lead=lead), text(0, [6, 2], lead=lead), text(0, [7], lead=lead)]
    rows = rows_of(texts)
    assert rows.input_ids.tolist() == [[*lead, 5, 6]]
    assert spoken(rows) == wanted(texts)


def test_equal_texts_and_a_text_that_begins_another_are_exact() -> None:
    texts = [text(0, [5, 6, 2]), text(0, [5, 6, 2]), text(0, [5]), text(1, [7]), text(1, [7])]
    rows = rows_of(texts)
    assert spoken(rows) == wanted(texts)


def test_different_tokens_before_the_image_are_not_shared() -> None:
    texts = [text(0, [5, 2], lead=(1, 7, 99, 99, 99)), text(0, [6, 2], lead=(1, 8, 99, 99, 99))]
    rows = rows_of(texts)
    assert rows.image_index.tolist() == [0, 0]
    assert int((rows.input_ids == IMAGE).sum()) == 2 * NUM_IMAGE
    assert spoken(rows) == wanted(texts)


def test_an_image_with_many_texts_is_split_by_the_budget() -> None:
    texts = [text(0, [10 + n, 30 + n, 60, 2]) for n in range(20)]
    rows = rows_of(texts, max_row_tokens=25)
    assert rows.input_ids.shape[1] <= 25
    assert rows.image_index.tolist() == [0, 0, 0]
    assert spoken(rows) == wanted(texts)
    one = [text(0, list(range(10, 50)))]
    assert rows_of(one, max_row_tokens=25).input_ids.shape == (1, 4 + 39)


def test_nothing_to_predict_and_loss_before_the_image_are_left_to_separate_samples() -> None:
    assert pack_texts([Text(0, [1, 99, 5], [IGNORED] * 3)], IMAGE) is None
    assert pack_texts([Text(0, [1, 5, 99], [IGNORED, 5, IGNORED])], IMAGE) is None


def test_rows_are_balanced() -> None:
    texts = [text(image, [5] * (3 + image % 7) + [2]) for image in range(60)]
    rows = rows_of(texts)
    assert rows.input_ids.shape[0] > 1
    assert float((rows.segment == 0).float().mean()) < 0.05


def test_additive_mask_is_zero_or_the_smallest_number() -> None:
    mask = additive(torch.tensor([[True, False]]), torch.bfloat16)
    assert mask.tolist() == [[0.0, float(torch.finfo(torch.bfloat16).min)]]
    assert mask.dtype == torch.bfloat16


@st.composite
def batches(draw: st.DrawFn) -> list[Text]:
    one = st.builds(
        lambda image, tail, prompt: text(image, tail, min(prompt, len(tail) - 1)),
        st.integers(0, 4),
        st.lists(st.integers(2, 5), min_size=1, max_size=9),
        st.integers(0, 4),
    )
    return draw(st.lists(one, min_size=1, max_size=14))


@settings(max_examples=150, deadline=None)
@given(batches(), st.integers(8, 60))
def test_any_batch_says_the_same_as_its_texts(texts: list[Text], budget: int) -> None:
    rows = rows_of(texts, max_row_tokens=budget)
    assert spoken(rows) == wanted(texts)
    assert len(set(rows.places.tolist())) == len(rows.places)
    images = rows.input_ids == IMAGE
    assert int(images.sum()) == NUM_IMAGE * len(rows.image_index)
    in_order = [int(s) for s in rows.segment[images][::NUM_IMAGE]]
    assert in_order == sorted(in_order), "soft prompts are filled in row by row"
    longest = max(len(one.ids) for one in texts)
    assert rows.input_ids.shape[1] <= max(budget, longest)
