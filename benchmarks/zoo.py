"""Every system of the zoo at tiny size: a private, secure, quantized round, and its published layout.

    python -m benchmarks.zoo --json
    python -m benchmarks.zoo --systems bunny-v1,cobra
    python -m benchmarks.zoo --record            # writes mllm/zoo/verified.json, which `umbel zoo` shows

For each system: a federated round over the in-memory grid with example-level differential privacy, secure aggregation
and an NF4 base (round_ok); norms of per-example gradients by book-keeping beside the loop's, with factors on every
part (norms: the largest relative difference), and how far the sum of clipped gradients moves when an example leaves,
over the clipping norm (sensitivity, at most 1); the secure sum of vectors of the adapter's length, equal to the sum of
integers (secure); three clients trained in one batch of lanes beside each alone (lanes); a checkpoint in the published
names and shapes, loaded with no key left over (checkpoint_ok; null for families of transformers, whose loader is its
own).
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.output import finish, parser
from benchmarks.secagg_round import play
from mllm.load import load_base
from mllm.lora import attach_lora
from mllm.loss import per_example_loss
from mllm.modeling import ComposedForConditionalGeneration
from mllm.parts import PARTS, linear_sites
from mllm.rows import one_example, row_map, select_examples
from mllm.testing import QWEN_MARK, TinyBatch, _batcher
from mllm.testing_layouts import synthetic_checkpoint
from mllm.zoo import NATIVE, SYSTEMS
from mllm.zoo.figures import VERIFIED
from mllm.zoo.keys import KEYS
from mllm.zoo.published import load_published
from privacy.clipping.bookkeeping import BookkeepingEngine
from privacy.clipping.loop import LoopEngine
from umbel.config import RunConfig
from umbel.config.model import LoraConfig

CLIENTS, CLIPPING, RANK = 6, 0.1, 2
MARKS = {
    "qwen2_5_vl": QWEN_MARK,
    "qwen2_vl": QWEN_MARK,
    "qwen3_vl": QWEN_MARK,
    "gemma3": "<start_of_image>",
    "internvl": "<IMG_CONTEXT>",
}
"""How an image is written in a text, where not as <image>."""
NESTED = ("smolvlm", "idefics2", "idefics3", "paligemma", "gemma3", "llava_onevision")
"""Whose processors take a list of images a text."""


def data_folder(path: Path) -> Path:
    """A coloured image an example."""
    colours = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 200, 30)}
    path.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for split, count in (("train", 8 * CLIENTS), ("eval", 4)):
        lines = []
        for number in range(count):
            name = list(colours)[number % 3]
            pixels = generator.normal(0, 12, (32, 32, 3)) + colours[name]
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path / f"{split}{number}.png")
            line = {"image": f"{split}{number}.png", "question": "what colour is the shape ?", "answer": name}
            lines.append(json.dumps(line))
        (path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return path


def round_of(name: str, data: Path, scratch: Path) -> dict[str, Any]:
    """One federated round; the metrics line of its end."""
    from client.client_app import app
    from coordinator.run_folder import RunFolder
    from coordinator.server_app import run
    from simulations.memory_grid import MemoryGrid

    flat = {
        "run.directory": str(scratch), "run.id": name, "model.name": name, "model.size": "tiny",
        "model.quantization": "nf4", "task.name": "folder", "task.data": str(data), "task.partition": "iid",
        "task.minimum": 4, "lora.rank": RANK, "lora.alpha": 4.0, "train.amount": 2, "train.batch-size": 4,
        "train.microbatch": 4, "federation.clients": CLIENTS, "federation.rounds": 1, "federation.timeout": 120.0,
        "strategy.name": "fedit", "privacy.unit": "example", "privacy.epsilon": 50.0, "privacy.delta": 1e-2,
        "secagg.enabled": True, "evaluate.every": 0, "evaluate.main": 4, "evaluate.others": 1,
    }  # fmt: skip
    config = RunConfig.from_flat(flat)
    with RunFolder.open(config, 1) as folder:
        run(MemoryGrid(app, CLIENTS, config.to_flat()), config, folder)
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    found: dict[str, Any] = next(line for line in lines if line["kind"] == "round")
    return found


class Subject:
    """A tiny base with factors on every part that can carry them, and a batch with no, one and two images."""

    def __init__(self, name: str) -> None:
        base = load_base(f"{name}:tiny", "nf4")
        usable = {site.part for site in linear_sites(base.model) if not site.exempt}
        targets = ",".join(part for part in PARTS if part in usable)
        self.tuned = attach_lora(base, LoraConfig(rank=RANK, alpha=4.0, targets=targets), seed=0)
        self.processor = base.processor
        self.quantized = len(base.report.modules)
        generator = torch.Generator().manual_seed(1)
        for parameter in self.tuned.parameters.values():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        size = base.processor.image.size if hasattr(base.processor, "image") else 32
        nested = hasattr(base.processor, "image") or name in NESTED
        make = _batcher(base.processor, MARKS.get(name, "<image>"), size, nested=nested)
        self.batch: TinyBatch = make([1, 2, 1, 0] if name not in NATIVE else [1, 2, 1])

    def forward(self, pair: tuple[dict[str, Tensor], Tensor]) -> Tensor:
        """Losses of each example."""
        return per_example_loss(self.tuned.model(**pair[0], use_cache=False).logits, pair[1])

    def norms(self) -> float:
        """Largest relative difference between book-keeping's norms and the loop's."""
        found = [self._sum(kind, list(range(len(self.batch.images_per_example))))[0] for kind in _ENGINES]
        return float(((found[0] - found[1]).abs() / found[1].clamp(min=1e-12)).max())

    def sensitivity(self) -> float:
        """How far the clipped sum moves when an example leaves, over the clipping norm; the worst example."""
        everybody = list(range(len(self.batch.images_per_example)))
        whole = self._sum(BookkeepingEngine, everybody)[1]
        moved = [
            float((whole - self._sum(BookkeepingEngine, [i for i in everybody if i != gone])[1]).norm())
            for gone in everybody
        ]
        return max(moved) / CLIPPING

    def _sum(self, kind: Any, chosen: list[int]) -> tuple[Tensor, Tensor]:
        model, counts = self.tuned.model, self.batch.images_per_example
        inputs, images = select_examples(model, self.batch.inputs, counts, chosen)
        engine = kind(model, self.tuned.parameters, CLIPPING)
        rows = row_map(model, inputs, images) if kind is BookkeepingEngine else None
        seen = engine.accumulate(
            self.forward,
            (inputs, self.batch.labels[chosen]),
            rows,
            len(chosen),
            lambda pair, i: (one_example(model, pair[0], images, i), pair[1][i : i + 1]),
        )
        return seen.norms, torch.cat([value.reshape(-1) for value in engine.take().values()])


_ENGINES = (BookkeepingEngine, LoopEngine)


def lanes_ok(subject: Subject, data: Path) -> bool:
    """Whether three clients trained in lanes end where each ends alone, within 1e-4 of its update."""
    from client.trainer import Trainer
    from mllm.tasks.base import MemorySet
    from mllm.tasks.collate import Collator
    from mllm.tasks.example import Example, ImageSource
    from simulations.batched import LaneJob, LaneResult, LaneTrainer
    from strategies.client_round import ClientRound
    from strategies.fedit import FedIT
    from umbel.config import TrainConfig

    tuned, collator = subject.tuned, Collator(subject.processor)
    examples = [
        Example(
            (ImageSource(data / f"train{n}.png", keep=True),), "what colour is the shape ?", "red" if n % 2 else "blue"
        )
        for n in range(12)
    ]
    start = tuned.vector()
    flat: dict[str, Any] = {"amount": 2, "batch-size": 2, "microbatch": 2, "learning-rate": 1e-2, "optimizer": "sgd"}
    config = TrainConfig(**flat)
    jobs = [
        LaneJob(MemorySet(examples[4 * n : 4 * n + 4]), ClientRound(FedIT(), tuned.spec, start, 1), seed=n)
        for n in range(3)
    ]
    alone = []
    for job in jobs:
        Trainer(tuned, collator, config).train(job.examples, job.client, seed=job.seed)
        alone.append(tuned.vector())
    for outcome, expected in zip(LaneTrainer(tuned, collator, config).train_many(jobs), alone, strict=True):
        if not isinstance(outcome, LaneResult) or outcome.reason:
            return False
        if np.linalg.norm(outcome.local - expected) > 1e-4 * np.linalg.norm(expected - start):
            return False
    return True


def checkpoint_ok(name: str) -> bool | None:
    """Whether the published layout loads whole; None for families that transformers loads itself."""
    if name in NATIVE:
        return None
    config = SYSTEMS[name].config("tiny")
    model = ComposedForConditionalGeneration(config)
    return load_published(model, KEYS[name](config), synthetic_checkpoint(name, config)).whole


def row_of(name: str, data: Path, scratch: Path) -> dict[str, Any]:
    """Everything about one system."""
    started = time.perf_counter()
    row: dict[str, Any] = {"system": name, "round_ok": False, "checkpoint_ok": None, "quantized": False, "lanes": False}
    try:
        line = round_of(name, data, scratch)
        subject = Subject(name)
        size = subject.tuned.spec.size
        secure = play(CLIENTS, size, 0.0)
        norms = subject.norms()
        row |= {
            "round_ok": line["survivors"] == CLIENTS and line["secagg"]["mode"] == "complete" and bool(line["privacy"]),
            "checkpoint_ok": checkpoint_ok(name),
            "sensitivity": round(subject.sensitivity(), 6),
            "norms": norms,
            "secure": secure["exact"],
            "quantized": subject.quantized > 0,
            "lanes": lanes_ok(subject, data),
            "epsilon": line["privacy"]["epsilon"],
            "adapter_bytes": line["bytes_up"] // CLIENTS,
        }
        row["round_ok"] = bool(row["round_ok"] and row["sensitivity"] <= 1.0 and norms < 1e-3 and row["secure"])
    except Exception as error:  # a system that fails must not hide the others
        row["error"] = f"{type(error).__name__}: {error}"[:300]
    row["seconds"] = round(time.perf_counter() - started, 2)
    return row


def main() -> None:
    """The command line."""
    natives = [name for name, family in NATIVE.items() if family.processor]
    options = parser("Every system of the zoo at tiny size.")
    options.add_argument("--systems", default="", help="comma-separated; all by default")
    options.add_argument("--record", action="store_true", help="keep the results for `umbel zoo`")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    names = [name for name in arguments.systems.split(",") if name] or [*SYSTEMS, *natives]
    rows = []
    with tempfile.TemporaryDirectory(prefix="umbel-zoo-") as scratch:
        data = data_folder(Path(scratch) / "data")
        for name in names:
            rows.append(row_of(name, data, Path(scratch) / "runs"))
            if arguments.record:
                _record(rows[-1])
    figures = {
        "systems": [row for row in rows if row["system"] in SYSTEMS],
        "native": [row for row in rows if row["system"] in NATIVE],
    }
    finish(figures, as_json=arguments.json)
    if not all(map(is_whole, rows)):
        raise SystemExit(1)


def is_whole(row: dict[str, Any]) -> bool:
    """Whether everything that was looked at in a row held."""
    return bool(row["round_ok"] and row["quantized"] and row["lanes"] and row["checkpoint_ok"] is not False)


def _record(row: dict[str, Any]) -> None:
    kept = json.loads(VERIFIED.read_text()) if VERIFIED.is_file() else {}
    kept[row["system"]] = {key: value for key, value in row.items() if key != "seconds"}
    VERIFIED.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
