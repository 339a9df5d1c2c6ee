"""Row maps of the model families: which example owns each image, tile and patch inside a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llava_onevision.modeling_llava_onevision import get_anyres_image_grid_shape, unpad_image

from umbel.errors import ModelError
from umbel.rows import RowMap, RowRule, Rows, batch_rule

_PER_IMAGE: Mapping[str, tuple[str, ...]] = {
    "llava": ("vision_tower", "multi_modal_projector"),
    "vipllava": ("vision_tower", "multi_modal_projector"),
    "paligemma": ("vision_tower", "multi_modal_projector"),
    "gemma3": ("vision_tower", "multi_modal_projector"),
    "internvl": ("vision_tower", "multi_modal_projector"),
    "deepseek_vl": ("vision_model", "aligner"),
    "blip-2": ("vision_model", "qformer", "language_projection"),
    "umbel_vlm": ("vision_tower", "projector"),
}
"""``pixel_values`` [images or tiles, 3, H, W]; every row gives the same number of image tokens."""
_PADDED: Mapping[str, tuple[str, ...]] = dict.fromkeys(
    ("smolvlm", "idefics3", "idefics2"), ("vision_model", "connector")
)
"""``pixel_values`` [n, images, 3, H, W]; images that are all zero are dropped inside the model."""
_PACKED: Mapping[str, tuple[str, ...]] = dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), ("visual",))
"""``pixel_values`` [patches, features] and ``image_grid_thw`` [images, 3]."""
_TILED: Mapping[str, tuple[str, ...]] = {"llava_onevision": ("vision_tower", "multi_modal_projector")}
"""``pixel_values`` [images, tiles, 3, H, W], padded, and ``image_sizes`` [images, 2]; ``batch_num_images`` has a number
for each example with images, and an image that is alone in its example is cut into tiles."""

FAMILIES = frozenset({*_PER_IMAGE, *_PADDED, *_PACKED, *_TILED})
"""``model_type`` of the families that have a row map; all others need the loop engine."""


@dataclass(frozen=True)
class _Batch:
    config: Any
    inputs: Mapping[str, Tensor]
    images: Sequence[int]
    size: int
    tokens: Sequence[int] | None
    """Image placeholders of each example."""


def row_map(model: nn.Module, inputs: Mapping[str, Tensor], images_per_example: Sequence[int]) -> RowMap:
    """The row map of one (micro)batch.

    Args:
        model: a model of one of :data:`FAMILIES`, bare or wrapped by PEFT.
        inputs: what the model's forward gets: ``input_ids`` [n, T], and where there are images ``pixel_values`` (with
            ``image_grid_thw`` for the Qwen family, ``image_sizes`` and ``batch_num_images`` for LLaVA-OneVision).
        images_per_example: [n], how many images each example has, in reading order; 0 for text only. Where a family
            cuts an image into tiles the owners are read from the placeholders in ``input_ids`` instead.

    Returns:
        Owners for every layer of the vision tower, of the projector and of the language model.

    Raises:
        ModelError: the family is unknown, or images, placeholders and counts contradict each other. Image features
            take the place of placeholders in reading order, so the placeholders are the truth about ownership.
    """
    config = getattr(model, "config", None)
    family = _family(model)
    if family not in FAMILIES:
        raise ModelError(
            f"Model family {family!r} has no row map, so its images cannot be matched to examples: set the privacy "
            "engine to loop."
        )
    batch = _batch(config, inputs, images_per_example)
    if family in _PACKED:
        rules = _packed_rules(batch, _PACKED[family])
    elif family in _PADDED:
        rules = _padded_rules(batch, _PADDED[family])
    elif family in _TILED:
        rules = _tiled_rules(batch, _TILED[family])
    else:
        rules = _image_rules(batch, _PER_IMAGE[family])
    return RowMap(batch.size, (*rules, batch_rule(batch.size, int(inputs["input_ids"].shape[1]))))


def select_examples(
    model: nn.Module, inputs: Mapping[str, Tensor], images_per_example: Sequence[int], chosen: Sequence[int]
) -> tuple[dict[str, Tensor], list[int]]:
    """Some examples of a batch, text padded as it was, each with its own images.

    Args:
        model, inputs, images_per_example: as for :func:`row_map`.
        chosen: which examples, from 0, in ascending order.

    Returns:
        The inputs (keys of images are left out when no chosen example has one) and the image counts of the chosen.

    Raises:
        ModelError: as :func:`row_map`, or an index is outside the batch or out of order.
    """
    rows = row_map(model, inputs, images_per_example)
    order = [-1, *chosen, rows.size]
    if any(before >= after for before, after in pairwise(order)):
        raise ModelError(
            f"Examples {list(chosen)} cannot be chosen from {rows.size}: list each once, ascending from 0."
        )
    images = {key for key in inputs if key.startswith(("pixel_", "image_", "batch_num_images"))}
    picked = {key: value[list(chosen)] for key, value in inputs.items() if key not in images}
    counts = [int(images_per_example[i]) for i in chosen]
    if "pixel_values" not in inputs:
        return picked, counts
    pixels = inputs["pixel_values"]
    if _family(model) in _PADDED:
        if bool(_real_images(pixels)[list(chosen)].any()):
            picked.update({key: inputs[key][list(chosen)] for key in images})
        return picked, counts
    if _family(model) in _TILED:
        mine = torch.isin(Rows.repeated(list(images_per_example)).owners, torch.tensor(list(chosen)))
        if bool(mine.any()):
            picked.update({key: inputs[key][mine.to(inputs[key].device)] for key in ("pixel_values", "image_sizes")})
            groups = inputs["batch_num_images"]
            picked["batch_num_images"] = groups.new_tensor([count for count in counts if count])
        return picked, counts
    mine = torch.isin(_leading(rows, pixels).owners, torch.tensor(list(chosen), dtype=torch.int64))
    if bool(mine.any()):
        picked["pixel_values"] = pixels[mine.to(pixels.device)]
        if "image_grid_thw" in images:
            whole = Rows.repeated(list(images_per_example)).owners
            picked["image_grid_thw"] = inputs["image_grid_thw"][torch.isin(whole, torch.tensor(list(chosen)))]
    return picked, counts


def _leading(rows: RowMap, pixels: Tensor) -> Rows:
    """The owners of the rows of ``pixel_values`` themselves."""
    return next(layout for layout in rows.rules[0].layouts if len(layout) == pixels.shape[0])


def one_example(
    model: nn.Module, inputs: Mapping[str, Tensor], images_per_example: Sequence[int], index: int
) -> dict[str, Tensor]:
    """The inputs of one example of a batch as a batch of one: for the loop engine. See :func:`select_examples`."""
    return select_examples(model, inputs, images_per_example, [index])[0]


def _family(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))


def _real_images(pixels: Tensor) -> Tensor:
    """bool [n, images]: not all zero, as the Idefics family tells real images from padding."""
    return (pixels != 0).flatten(2).any(dim=2)


def _batch(config: Any, inputs: Mapping[str, Tensor], images: Sequence[int]) -> _Batch:
    ids = inputs.get("input_ids")
    if ids is None or ids.ndim != 2:
        raise ModelError("A row map needs input_ids of shape [n, T]: pass what the model's forward gets.")
    size = int(ids.shape[0])
    if len(images) != size or any(count < 0 for count in images):
        raise ModelError(
            f"Image counts {list(images)} do not fit a batch of {size} examples: give one count of at least 0 each."
        )
    token = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
    tokens = None if token is None else (ids == int(token)).sum(dim=1).tolist()
    return _Batch(config, inputs, [int(count) for count in images], size, tokens)


def _rules(parts: Sequence[str], *layouts: Rows) -> tuple[RowRule, ...]:
    return tuple(RowRule(part, layouts) for part in parts)


def _image_rules(batch: _Batch, parts: Sequence[str]) -> tuple[RowRule, ...]:
    pixels = batch.inputs.get("pixel_values")
    count = 0 if pixels is None else int(pixels.shape[0])
    owned = _by_tokens(batch.tokens, count) if batch.tokens is not None else list(batch.images)
    if sum(owned) != count or (sum(batch.images) == count and owned != list(batch.images)):
        raise ModelError(
            f"The batch has {count} images, counts {list(batch.images)} and placeholders that give {owned}: prepare "
            "text and images together with the model's own processor."
        )
    # Tiles and windows of an image lie next to each other, so its rows only come several times.
    times = getattr(batch.config, "rows_per_image", (1,)) if count else (1,)
    return _rules(parts, *(Rows.repeated([number * each for number in owned]) for each in times))


def _by_tokens(tokens: Sequence[int], count: int) -> list[int]:
    """How many of ``count`` equal images each example's placeholders stand for."""
    total = sum(tokens)
    if total == 0 or count == 0:
        return [0] * len(tokens)
    if total % count or any(number % (total // count) for number in tokens):
        raise ModelError(
            f"Placeholders {list(tokens)} cannot be shared out among {count} images: prepare text and images together "
            "with the model's own processor."
        )
    return [number // (total // count) for number in tokens]


def _padded_rules(batch: _Batch, parts: Sequence[str]) -> tuple[RowRule, ...]:
    pixels = batch.inputs.get("pixel_values")
    if pixels is None:
        return _rules(parts, Rows.repeated([0] * batch.size))
    if pixels.ndim != 5 or pixels.shape[0] != batch.size:
        raise ModelError(
            f"pixel_values have shape {tuple(pixels.shape)}, expected ({batch.size}, images, 3, H, W): prepare them "
            "with the model's own processor."
        )
    real = _real_images(pixels)
    if not bool(real.any()) and getattr(batch.config, "model_type", "") == "smolvlm":
        real[0, 0] = True  # the model keeps one empty image so that its tower always runs
    owned = real.sum(dim=1).tolist()
    if batch.tokens is not None and any(batch.tokens) and _by_tokens(batch.tokens, sum(owned)) != owned:
        raise ModelError(
            f"Examples have {owned} images but placeholders {list(batch.tokens)}: prepare text and images together "
            "with the model's own processor."
        )
    return _rules(parts, Rows.repeated(owned))


def _packed_rules(batch: _Batch, parts: Sequence[str]) -> tuple[RowRule, ...]:
    """Patches of an image stay together, also where the tower sorts them by window (inside each image)."""
    grid = batch.inputs.get("image_grid_thw")
    pixels = batch.inputs.get("pixel_values")
    if grid is None or pixels is None:
        return _rules(parts, Rows.repeated([0] * batch.size))
    patches: list[int] = grid.prod(dim=1).tolist()
    if sum(batch.images) != len(patches) or sum(patches) != pixels.shape[0]:
        raise ModelError(
            f"image_grid_thw describes {len(patches)} images of {sum(patches)} patches, but the batch has "
            f"{sum(batch.images)} images of {pixels.shape[0]}: prepare them with the model's own processor."
        )
    merge = int(batch.config.vision_config.spatial_merge_size) ** 2
    owned: list[int] = []
    start = 0
    for count in batch.images:
        owned.append(sum(patches[start : start + count]))
        start += count
    merged = [count // merge for count in owned]
    if batch.tokens is not None and merged != list(batch.tokens):
        raise ModelError(
            f"Examples have {merged} image tokens but placeholders {list(batch.tokens)}: prepare text and images "
            "together with the model's own processor."
        )
    return _rules(parts, Rows.repeated(owned), Rows.repeated(merged))


def _tiled_rules(batch: _Batch, parts: Sequence[str]) -> tuple[RowRule, ...]:
    """Tiles of an image stay together; padding among them is cut off before the tower."""
    pixels, sizes = batch.inputs.get("pixel_values"), batch.inputs.get("image_sizes")
    groups = batch.inputs.get("batch_num_images")
    if pixels is None:
        return _rules(parts, Rows.repeated([0] * batch.size))
    if (
        pixels.ndim != 5
        or sizes is None
        or groups is None
        or groups.tolist() != [count for count in batch.images if count]
        or not len(sizes) == len(pixels) == sum(batch.images)
    ):
        raise ModelError(
            f"The batch has pixel_values of shape {tuple(pixels.shape)} for counts {list(batch.images)}, expected "
            "(images, tiles, 3, H, W) with image_sizes and batch_num_images: prepare them with the model's own "
            "processor, a list of images for each text."
        )
    shapes = iter(sizes.tolist())
    found = [[_tiles(batch.config, next(shapes), alone=count == 1) for _ in range(count)] for count in batch.images]
    tokens = [sum(each for _, each in images) for images in found]
    if batch.tokens is not None and tokens != list(batch.tokens):
        raise ModelError(
            f"Examples have {tokens} image tokens but placeholders {list(batch.tokens)}: prepare text and images "
            "together with the model's own processor."
        )
    return _rules(parts, Rows.repeated([sum(tiles for tiles, _ in images) for images in found]))


def _tiles(config: Any, size: Sequence[int], *, alone: bool) -> tuple[int, int]:
    """Views of an image of this height and width, and how many tokens they become."""
    vision = config.vision_config
    side = int(vision.image_size) // int(vision.patch_size)
    if not alone:
        return 1, side * side + 1
    down, across = get_anyres_image_grid_shape(list(size), config.image_grid_pinpoints, vision.image_size)
    _, height, width = unpad_image(torch.empty(0, down * side, across * side), list(size)).shape
    ratio = math.sqrt(height * width / (int(config.vision_aspect_ratio.removeprefix("anyres_max_")) * side**2))
    if ratio > 1.1:  # the model shrinks what is larger
        height, width = int(height // ratio), int(width // ratio)
    return 1 + down * across, side * side + height * (width + 1)
