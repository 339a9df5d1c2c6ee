"""Recipe: everything that decides what a base becomes, and its hash."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Recipe:
    """The demo base: architecture, then the two stages of its training.

    Attributes:
        version: raised when the code of the training changes what comes out.
        channels, stem_stride: of the residual encoder; a 64 x 64 image becomes 4 x 4 tokens.
        width, layers, heads, intermediate: of the Llama-type language model; widths are multiples of 64, the
            block of NF4.
        encoder_steps, encoder_batch, encoder_rate: stage one, colour and shape labels and the colour's value.
        joint_steps, joint_batch, joint_rate: stage two, questions and answers, the encoder frozen.
        weight_decay: of AdamW, both stages.
        warmup: share of a stage's steps in which the rate rises; it falls along a cosine afterwards.
        seed: of weights and batches.
        threads: CPU threads, fixed because sums split over threads round differently.
    """

    version: int = 4
    image_size: int = 64
    channels: tuple[int, ...] = (32, 64, 128)
    stem_stride: int = 2
    width: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int = 256
    encoder_steps: int = 350
    encoder_batch: int = 64
    encoder_rate: float = 2e-3
    joint_steps: int = 1000
    joint_batch: int = 96
    joint_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    seed: int = 7
    threads: int = 1

    def hash(self, data: str) -> str:
        """SHA-256 in hexadecimal over the recipe and the fingerprint of its data."""
        body = json.dumps({"recipe": asdict(self), "data": data}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(body.encode()).hexdigest()
