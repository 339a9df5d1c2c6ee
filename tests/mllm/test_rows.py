"""Row maps: owners of every layout, and refusal of batches that contradict themselves."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mllm.rows import FAMILIES, one_example, row_map, select_examples
from mllm.testing_families import MAKERS, family
from umbel.errors import ModelError
from umbel.rows import RowMap, RowRule, Rows, batch_rule

torch.set_num_threads(1)
VISION = {
    "smolvlm": "model.vision_model.encoder",
    "idefics2": "model.vision_model.encoder",
    "idefics3": "model.vision_model.encoder",
    "qwen2_5_vl": "model.visual.blocks.0",
}


def owners(rows: RowMap, module: str, *shape: int) -> list[int]:
    return rows.rows_of(module, shape).owners.tolist()


@pytest.mark.parametrize("name", MAKERS)
def test_every_family(name):
    made = family(name)
    counts = [2, 0, 1]
    batch = made.batch(counts)
    rows = row_map(made.model, batch.inputs, counts)
    length = batch.inputs["input_ids"].shape[1]
    tower = VISION.get(name, "vision_tower.encoder")
    if name == "qwen2_5_vl":
        assert owners(rows, tower, 192, 8) == [0] * 128 + [2] * 64
        assert owners(rows, "base_model.model.model.visual.merger.mlp.0", 48, 8) == [0] * 32 + [2] * 16
        assert owners(rows, tower, 1, 192, 8) == [0] * 128 + [2] * 64
    else:
        assert owners(rows, f"base_model.model.{tower}.layers.0.lora_A", 3, 16, 8) == [0, 0, 2]
    assert owners(rows, "model.language_model.layers.0", 3, length, 8) == [0, 1, 2]
    assert owners(rows, "language_model.experts", 3 * length, 8) == [0] * length + [1] * length + [2] * length
    with pytest.raises(ModelError, match="loop engine"):
        rows.rows_of(tower, (5, 16, 8))
    with pytest.raises(ModelError, match="loop engine"):
        rows.rows_of("language_model.layers.0", (2, length, 8))


@pytest.mark.parametrize("name", MAKERS)
def test_text_only(name):
    made = family(name)
    batch = made.batch([0, 0])
    rows = row_map(made.model, batch.inputs, [0, 0])
    assert owners(rows, "language_model", 2, 5, 8) == [0, 1]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("counts", [[2, 0, 1], [1, 1, 1], [0, 3, 0]])
def test_examples_alone_say_the_same(name, counts):
    """Taking a batch apart keeps each example's logits: text, images and owners stay together."""
    made = family(name)
    batch = made.batch(counts)
    with torch.no_grad():
        whole = made.model(**batch.inputs).logits
        for i in range(3):
            alone = made.model(**one_example(made.model, batch.inputs, counts, i)).logits[0]
            real = batch.inputs["attention_mask"][i].bool()
            torch.testing.assert_close(alone[real], whole[i][real], rtol=1e-3, atol=1e-4)
        rest, kept = select_examples(made.model, batch.inputs, counts, [0, 2])
        assert kept == [counts[0], counts[2]]
        both = made.model(**rest).logits
        real = batch.inputs["attention_mask"][2].bool()
        torch.testing.assert_close(both[1][real], whole[2][real], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["llava", "internvl", "composed", "qwen2_5_vl", "smolvlm"])
def test_contradictions(name):
    made = family(name)
    counts = [1, 1]
    batch = made.batch(counts)
    with pytest.raises(ModelError, match="one count"):
        row_map(made.model, batch.inputs, [1])
    with pytest.raises(ModelError, match="one count"):
        row_map(made.model, batch.inputs, [1, -1])
    token = made.model.config.image_token_id
    swapped = copy.deepcopy(batch.inputs)
    places = (swapped["input_ids"][0] == token).nonzero().flatten()
    swapped["input_ids"][0, places[:3]] = 5  # fewer placeholders than the images need
    with pytest.raises(ModelError, match=r"[Pp]laceholders"):
        row_map(made.model, swapped, counts)


def test_counts_that_disagree_with_the_placeholders():
    """Two images that both stand in the first example may not be booked one each."""
    made = family("llava")
    batch = made.batch([2, 0])
    with pytest.raises(ModelError, match="processor"):
        row_map(made.model, batch.inputs, [1, 1])


def test_tiles_are_read_from_the_placeholders():
    """InternVL: five tiles of two images; the counts say images, the placeholders say tiles."""
    made = family("internvl")
    batch = made.batch([3, 2])
    rows = row_map(made.model, batch.inputs, [1, 1])
    assert owners(rows, "model.vision_tower.encoder", 5, 17, 8) == [0, 0, 0, 1, 1]


def test_unknown_family_and_missing_text():
    with pytest.raises(ModelError, match="engine to loop"):
        row_map(nn.Linear(2, 2), {}, [])
    with pytest.raises(ModelError, match="input_ids"):
        row_map(family("llava").model, {}, [])
    assert "mystery" not in FAMILIES


def test_choosing_examples_out_of_range_or_order():
    made = family("llava")
    batch = made.batch([1, 1])
    for wrong in ([2], [-1], [1, 0], [0, 0]):
        with pytest.raises(ModelError, match="cannot be chosen"):
            select_examples(made.model, batch.inputs, [1, 1], wrong)
    with pytest.raises(ModelError, match="no tiny family"):
        family("mystery")


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.randoms())
def test_rows(counts, random):
    rows = Rows.repeated(counts)
    assert rows.counts == tuple(counts)
    assert rows.order is None
    assert rows.even == (len(set(counts)) == 1 and counts[0] > 0)
    shuffled = rows.owners.tolist()
    random.shuffle(shuffled)
    mixed = Rows(torch.tensor(shuffled, dtype=torch.int64), len(counts))
    assert mixed.counts == tuple(counts)
    order = torch.arange(len(shuffled)) if mixed.order is None else mixed.order
    assert mixed.owners[order].tolist() == rows.owners.tolist()


def test_rows_that_cannot_be():
    with pytest.raises(ModelError, match="int64"):
        Rows(torch.zeros(3), 1)
    with pytest.raises(ModelError, match="outside the batch"):
        Rows(torch.tensor([0, 3]), 2)
    with pytest.raises(ModelError, match="negative"):
        Rows.repeated([1, -1])
    with pytest.raises(ModelError, match="different owners"):
        RowRule("a", (Rows.repeated([1, 2]), Rows.repeated([2, 1])))


def test_the_first_rule_that_fits_decides():
    rows = RowMap(2, (RowRule("tower", (Rows.repeated([2, 1]),)), batch_rule(2, 4)))
    assert owners(rows, "a.tower.b", 3, 7) == [0, 0, 1]
    assert owners(rows, "a.towers.b", 2, 7, 7) == [0, 1]  # a part is a whole name
    assert owners(rows, "b", 8, 7) == [0] * 4 + [1] * 4
    with pytest.raises(ModelError):
        rows.rows_of("b", (2,))
