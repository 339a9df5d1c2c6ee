"""Tiny trained models of every family, for the tests of clipping and audit."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from mllm.loss import per_example_loss
from mllm.rows import row_map, select_examples
from mllm.testing_families import Family, family
from umbel.rows import RowMap

VISION = (
    r".*(vision_tower|vision_model|visual\.blocks)\..*\."
    r"(q_proj|k_proj|v_proj|fc1|fc2|qkv|attn\.proj|linear_fc1|gate_proj|down_proj|projection_layer)"
)
LANGUAGE = r".*(language_model|text_model)\..*\.(q_proj|v_proj|o_proj|gate_proj|down_proj)"
PROJECTOR = (
    r".*(multi_modal_projector\.linear.*|connector\..*(proj|q_proj|k_proj|v_proj|down_proj)"
    r"|visual\.merger\.(mlp\.[02]|linear_fc\d)|(^|.*\.)projector\..*[02])"
)
PARTS = {"language": LANGUAGE, "vision": VISION, "both": f"({LANGUAGE}|{VISION})", "projector": PROJECTOR}
LAYOUTS = {"none": (0, 0, 0), "one": (1, 1, 1), "several": (2, 2, 2), "ragged": (2, 0, 1)}


@functools.cache
def base(name: str) -> Family:
    return family(name)


@dataclass
class Cell:
    """A model under training and one batch for it; the batch is (inputs, labels, counts)."""

    model: Any
    trainable: dict[str, torch.nn.Parameter]
    batch: tuple[dict[str, torch.Tensor], torch.Tensor, list[int]]

    @property
    def size(self) -> int:
        return len(self.batch[2])

    @property
    def rows(self) -> RowMap:
        return self.rows_of(self.batch)

    def rows_of(self, batch: Any) -> RowMap:
        return row_map(self.model, batch[0], batch[2])

    def forward(self, batch: Any) -> torch.Tensor:
        return per_example_loss(self.model(**batch[0]).logits, batch[1])

    def split(self, batch: Any, index: int) -> Any:
        return self._chosen(batch, [index])

    def without(self, batch: Any, index: int) -> Any:
        return self._chosen(batch, [i for i in range(len(batch[2])) if i != index])

    def _chosen(self, batch: Any, chosen: list[int]) -> Any:
        inputs, counts = select_examples(self.model, batch[0], batch[2], chosen)
        return inputs, batch[1][chosen], counts

    def run(self, engine: Any) -> tuple[Any, dict[str, torch.Tensor]]:
        seen = engine.accumulate(self.forward, self.batch, self.rows, self.size, self.split)
        return seen, engine.take()


def adapt(model: Any, **lora: Any) -> tuple[Any, dict[str, torch.nn.Parameter]]:
    """LoRA with random factors on a copy of the model; names and parameters that train."""
    peft = get_peft_model(copy.deepcopy(model), LoraConfig(**{"r": 2, "lora_alpha": 4, **lora}))
    generator = torch.Generator().manual_seed(7)
    trainable = {}
    for name, p in peft.named_parameters():
        if p.requires_grad:
            if "lora_" in name:
                p.data.copy_(torch.randn(p.shape, generator=generator) * 0.2)
            trainable[name] = p
    return peft, trainable


def cell(name: str, part: str, layout: str | tuple[int, ...], seed: int = 1, **lora: Any) -> Cell:
    counts = list(LAYOUTS[layout] if isinstance(layout, str) else layout)
    model, trainable = adapt(base(name).model, target_modules=PARTS[part], **lora)
    made = base(name).batch(counts, seed=seed)
    return Cell(model, trainable, (made.inputs, made.labels, counts))
