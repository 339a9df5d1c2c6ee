"""Memory that training takes: what the zoo predicts without storage beside the peak of a real step.

    python -m benchmarks.zoo_memory --json

Six composed models of 4 to 10 million parameters that differ in tower, projector and language model. Measured is the
highest sum of bytes that torch's CPU allocator hands out during forward and backward (read from the profiler's
allocation events), on top of weights, adapter and optimizer state; Python and its libraries come on top of both.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.dp_step import peak_over_base
from benchmarks.output import finish, parser
from mllm.backends import weight_bytes
from mllm.config import ComposedConfig
from mllm.encoders import ENCODERS
from mllm.language import LANGUAGES
from mllm.load import Base
from mllm.lora import attach_lora
from mllm.loss import per_example_loss
from mllm.modeling import ComposedForConditionalGeneration
from mllm.projectors import PROJECTORS
from mllm.quantize import quantize
from mllm.zoo.memory import ADAPTER_COPIES, Step, training_memory
from umbel.config.model import LoraConfig

MODELS = (
    ("siglip", "mlp", "phi", "nf4"),
    ("clip", "ldp", "llama", "none"),
    ("dinov2", "mlp", "gemma", "nf4"),
    ("convnext", "mlp", "qwen2", "nf4"),
    ("siglip", "resampler", "minicpm", "none"),
    ("siglip", "mlp", "upcycled", "nf4"),
)
STEP = Step(examples=4, images=1, words=128)
WIDTH, LAYERS, VOCABULARY, IMAGE = 256, 4, 2048, 64


def config_of(encoder: str, projector: str, language: str) -> ComposedConfig:
    """A composed configuration of middling size."""
    text = LANGUAGES[language].tiny(WIDTH, LAYERS, VOCABULARY, False)
    return ComposedConfig(
        vision_config=ENCODERS[encoder].tiny(WIDTH, LAYERS, IMAGE),
        text_config=text,
        projector={"type": projector, **PROJECTORS[projector].tiny()},
        image_token_id=4,
    )


def measured(config: ComposedConfig, backend: str, step: Step) -> int:
    """Bytes of a real step, weights and adapter and optimizer state included."""
    torch.manual_seed(0)
    model = ComposedForConditionalGeneration(config)
    report = quantize(model, backend, torch.device("cpu"), torch.float32)
    base = Base("b", None, "", model, None, report)  # type: ignore[arg-type]
    stored = sum(weight_bytes(p) for p in {id(p): p for p in model.parameters()}.values())
    tuned = attach_lora(base, LoraConfig(rank=8, alpha=16.0), seed=0)
    tuned.model.train()
    ids = torch.randint(5, VOCABULARY, (step.examples, config.tokens_per_image + step.words))
    ids[:, : config.tokens_per_image] = config.image_token_id
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["pixel_values"] = torch.randn(step.examples, 3, config.image_size, config.image_size)
    labels = ids.masked_fill(ids == config.image_token_id, -100)

    def run() -> None:
        per_example_loss(tuned.model(**inputs, use_cache=False).logits, labels).sum().backward()  # type: ignore[no-untyped-call]

    run()
    for parameter in tuned.parameters.values():
        parameter.grad = None
    peak = peak_over_base(run)
    trained = sum(p.numel() for p in tuned.parameters.values())
    return stored + ADAPTER_COPIES * 4 * trained + peak - 4 * trained


def compare(models: tuple[tuple[str, str, str, str], ...] = MODELS, step: Step = STEP) -> list[dict[str, Any]]:
    """One row a model: bytes predicted and measured, and their ratio."""
    rows = []
    for encoder, projector, language, backend in models:
        config = config_of(encoder, projector, language)
        real = measured(config, backend, step)
        said = training_memory(config, step, quantization=backend).total
        rows.append(
            {
                "model": f"{encoder}+{projector}+{language}",
                "quantization": backend,
                "predicted": said,
                "measured": real,
                "ratio": round(said / real, 3),
            }
        )
    return rows


def main() -> None:
    """The command line."""
    arguments = parser("Memory of training, predicted and measured.").parse_args()
    torch.set_num_threads(1)
    rows = compare()
    worst = max(abs(row["ratio"] - 1) for row in rows)
    finish({"models": rows, "worst": round(worst, 3), "ok": worst <= 0.15}, as_json=arguments.json)


if __name__ == "__main__":
    main()
