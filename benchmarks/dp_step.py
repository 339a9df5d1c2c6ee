"""What a private step costs: time and peak memory of every clipping engine over plain LoRA training.

Run it with ``python -m benchmarks.dp_step --json``; the last line is the result. One process trains the same random
LLaVA of about 40M parameters (LoRA of rank 8 on all linear layers of its language model; Opacus can do no more) by a
plain AdamW step and by a DP step of each engine, interleaved, and reports medians of the *ratios* within a turn, so
that a slow spell of the machine hits numerator and denominator alike. A DP step is forward, backward, clipping,
Gaussian noise on the sum and AdamW. Memory is the highest sum of bytes that torch's CPU allocator has handed out
during the forward, backward and clipping of a step, over what was held when it began (weights, optimizer state), read
from the profiler's allocation events.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from mllm.loss import per_example_loss
from mllm.rows import one_example, row_map
from privacy.clipping import make_engine
from privacy.noise import add_gaussian_

ENGINES = {"bookkeeping": "bookkeeping", "loop": "loop", "opacus_hooks": "opacus", "opacus_ghost": "opacus-ghost"}
IMAGE_TOKEN = 8000
TOKENS = 49


def model_of(rank: int) -> nn.Module:
    """A random LLaVA (SigLIP and Llama) with LoRA on the language model's linear layers, in training mode."""
    config = transformers.LlavaConfig(
        vision_config=transformers.SiglipVisionConfig(
            hidden_size=384,
            intermediate_size=1536,
            num_hidden_layers=6,
            num_attention_heads=6,
            image_size=112,
            patch_size=16,
        ),
        text_config=transformers.LlamaConfig(
            vocab_size=8192,
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=8,
        ),
        image_token_index=IMAGE_TOKEN,
        image_seq_length=TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    torch.manual_seed(0)
    base = transformers.LlavaForConditionalGeneration(config)
    targets = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.02)
    trained: nn.Module = model.train()
    return trained


def batch_of(size: int, length: int) -> tuple[dict[str, Tensor], Tensor]:
    """``size`` examples of one image and ``length`` tokens."""
    ids = torch.randint(3, 7000, (size, length))
    ids[:, 1 : 1 + TOKENS] = IMAGE_TOKEN
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(size, 3, 112, 112),
    }
    return inputs, ids.masked_fill(ids == IMAGE_TOKEN, -100)


def peak_over_base(step: Callable[[], None]) -> int:
    """Bytes: the highest running sum of CPU allocations and frees during ``step``."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        step()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    level = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


class Bench:
    """The model, its batch and one AdamW per way of training."""

    def __init__(self, size: int, length: int, rank: int) -> None:
        self.model = model_of(rank)
        self.inputs, self.labels = batch_of(size, length)
        self.size = size
        self.trainable = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.engines: dict[str, Any] = {
            name: make_engine(kind, self.model, self.trainable, 1.0) for name, kind in ENGINES.items()
        }
        ways = ("plain", *ENGINES)
        self.optimizers = {way: torch.optim.AdamW(self.trainable.values(), lr=1e-6) for way in ways}

    def forward(self, batch: tuple[dict[str, Tensor], Tensor]) -> Tensor:
        """Losses of each example."""
        return per_example_loss(self.model(**batch[0], use_cache=False).logits, batch[1])

    def gradient(self, way: str) -> None:
        """Leaves the step's gradient in ``grad``, noised unless plain."""
        batch = (self.inputs, self.labels)
        if way == "plain":
            for p in self.trainable.values():
                p.grad = None
            self.forward(batch).mean().backward()  # type: ignore[no-untyped-call]
            return
        images = [1] * self.size
        rows = row_map(self.model, self.inputs, images)

        def split(whole: tuple[dict[str, Tensor], Tensor], index: int) -> tuple[dict[str, Tensor], Tensor]:
            return one_example(self.model, whole[0], images, index), whole[1][index : index + 1]

        self.engines[way].accumulate(self.forward, batch, rows, self.size, split)
        for name, value in self.engines[way].take().items():
            self.trainable[name].grad = value

    def step(self, way: str) -> None:
        """One whole step."""
        self.gradient(way)
        if way != "plain":
            for p in self.trainable.values():
                assert p.grad is not None
                add_gaussian_(p.grad, 1.0)
                p.grad.div_(self.size)
        self.optimizers[way].step()


def measure(size: int, length: int, turns: int, rank: int) -> dict[str, Any]:
    """Ratios to plain training."""
    bench = Bench(size, length, rank)
    ways = ("plain", *ENGINES)
    for way in ways:  # Opacus checks itself against the loop here, outside the clock
        bench.step(way)
    memory = {way: peak_over_base(lambda way=way: bench.gradient(way)) for way in ways}  # type: ignore[misc]
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(turns):
        for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
            start = time.perf_counter()
            bench.step(way)
            seconds[way].append(time.perf_counter() - start)
    engines = {
        way: {
            "time": round(statistics.median(a / b for a, b in zip(seconds[way], seconds["plain"], strict=True)), 3),
            "memory": round(memory[way] / memory["plain"], 3),
        }
        for way in ENGINES
    }
    plain = {"seconds": round(statistics.median(seconds["plain"]), 4), "peak_bytes": memory["plain"]}
    trained = sum(p.numel() for p in bench.trainable.values())
    return {"params": bench.parameters, "trainable": trained, "plain": plain, "engines": engines}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print only the result, as one JSON line")
    parser.add_argument("--size", type=int, default=8, help="examples a step")
    parser.add_argument("--length", type=int, default=128, help="tokens an example")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = measure(options.size, options.length, options.turns, options.rank)
    if not options.json:
        print(f"{result['params'] / 1e6:.1f}M parameters, plain step {result['plain']['seconds']:.2f} s")
        for way, ratio in result["engines"].items():
            print(f"{way:13} time {ratio['time']:.3f}  memory {ratio['memory']:.3f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
