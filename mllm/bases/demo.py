"""The demo base: a vision-language model of one million parameters that has seen the public colours only.

Two stages, both on public images (see :mod:`mllm.tasks.easy_vqa`): the encoder alone learns colour and shape
labels, then projector and language model learn the questions together on what the frozen encoder says. Without the
first stage the whole stays for long at what the questions alone give away.

Labels alone would let the encoder forget what does not part the public colours, and gray would become teal for good.
So it also predicts the shape's RGB value: a general-purpose encoder would keep it too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mllm.bases.recipe import Recipe
from mllm.config import ComposedConfig
from mllm.encoders.resnet import ResNetConfig
from mllm.loss import per_example_loss
from mllm.modeling import ComposedForConditionalGeneration
from mllm.processing import ComposedProcessor
from mllm.tasks import easy_vqa
from mllm.tasks.base import ExampleSet, MemorySet
from mllm.tasks.collate import Collator
from mllm.tasks.example import Example, ImageSource
from mllm.tasks.metrics import evaluate
from mllm.tokenizer import word_tokenizer
from umbel.errors import DataError, ModelError

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, steps done, steps in all)``."""

_COLOURS = tuple(easy_vqa.PALETTE)


@dataclass(frozen=True, slots=True)
class DemoModel:
    """A freshly trained base."""

    model: ComposedForConditionalGeneration
    processor: ComposedProcessor


def public_examples() -> ExampleSet:
    """The public training examples: no image of a private colour, no answer that names one.

    Raises:
        DataError: the data cannot be read, or a private image stands among the public ones.
    """
    public = [e for e in easy_vqa.read_split("train") if not easy_vqa.is_private(e)]
    sources = {e.images[0]: e.meta["colour"] for e in public}
    # The colours come from the questions where those tell; the pixels have the last word on what may be seen.
    leaked = [s.origin for s, c in sources.items() if easy_vqa.colour_of(s) != c or c in easy_vqa.PRIVATE_COLOURS]
    if leaked or any(e.answer in easy_vqa.PRIVATE_COLOURS for e in public):
        raise DataError(f"The public training data holds a private image ({leaked[:1]}): reinstall easy-vqa==1.0.")
    return MemorySet(public)


def words(examples: Sequence[Example]) -> set[str]:
    """The vocabulary: the words of public questions and all thirteen answers."""
    found = {word for e in examples for word in re.findall(r"\w+|[^\w\s]+", e.question)}
    return found | set(easy_vqa.ANSWERS)


def untrained(recipe: Recipe, vocabulary: set[str]) -> DemoModel:
    """The model with random weights, drawn from torch's global generator, and its processor."""
    from transformers import LlamaConfig

    tokenizer = word_tokenizer(vocabulary)
    config = ComposedConfig(
        vision_config=ResNetConfig(
            image_size=recipe.image_size, channels=recipe.channels, stem_stride=recipe.stem_stride
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.width,
            intermediate_size=recipe.intermediate,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=1024,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=False,
        ),
        projector={"type": "mlp", "depth": 2},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return DemoModel(ComposedForConditionalGeneration(config), ComposedProcessor.for_config(config, tokenizer))


def train(recipe: Recipe, progress: Progress) -> DemoModel:
    """Trains the base from nothing, on public images alone.

    The same recipe on the same data, machine and versions gives the same weights. Torch's global generator and
    number of threads are as before afterwards.

    Raises:
        DataError: the data cannot be read.
        ModelError: the training diverged.
    """
    examples = public_examples()
    with _settled(recipe):
        demo = untrained(recipe, words(examples))
        generator = torch.Generator().manual_seed(recipe.seed + 1)
        sight = _Sight(demo, examples, recipe.channels[-1])
        _train_encoder(sight, recipe, generator, progress)
        _train_jointly(demo, sight, examples, recipe, generator, progress)
    demo.model.eval()
    return demo


def measure(demo: DemoModel) -> dict[str, Any]:
    """Accuracy on the public and private test questions, as fractions, and by type on the private ones."""
    collator = Collator(demo.processor, cache_bytes=0)
    test = easy_vqa.read_split("test")
    public = evaluate(demo.model, collator, MemorySet(e for e in test if not easy_vqa.is_private(e)), batch_size=128)
    private = evaluate(demo.model, collator, MemorySet(e for e in test if easy_vqa.is_private(e)), batch_size=128)
    return {
        "public": round(public.accuracy, 4),
        "private": round(private.accuracy, 4),
        "private_by_type": {kind: round(right / count, 4) for kind, (right, count) in private.by_type.items()},
        "parameters": sum(p.numel() for p in demo.model.parameters()),
    }


class _Sight:
    """What is asked of the encoder: colour and shape labels, and the shape's RGB value."""

    def __init__(self, demo: DemoModel, examples: ExampleSet, width: int) -> None:
        self.sources, self.colours, self.shapes = _labels(examples)
        self.values = torch.tensor([easy_vqa.PALETTE[name] for name in _COLOURS]) / 127.5 - 1.0
        self.pixels = demo.processor.pixel_values([source.open() for source in self.sources])
        self.place = {source: index for index, source in enumerate(self.sources)}
        self.tower: Any = demo.model.vision_tower
        sizes = {"colour": len(_COLOURS), "shape": len(easy_vqa.SHAPES), "rgb": 3}
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items()})

    def tokens(self, images: Tensor) -> Tensor:
        """The encoder's tokens, float32 [n, tokens, channels], of the images at these places."""
        tokens: Tensor = self.tower(pixel_values=self.pixels[images]).last_hidden_state
        return tokens

    def all_tokens(self) -> Tensor:
        """What the encoder says of every image, float32 [images, tokens, channels], without gradients."""
        self.tower.eval()
        with torch.no_grad():
            return torch.cat([self.tokens(chosen) for chosen in torch.split(torch.arange(len(self.sources)), 256)])

    def label_loss(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Cross-entropy of colour and, where known, of shape."""
        features = self.pool(tokens)
        colour = F.cross_entropy(self.heads["colour"](features), self.colours[images])
        known = self.shapes[images] >= 0
        shape = F.cross_entropy(self.heads["shape"](features), self.shapes[images].clamp(min=0), reduction="none")
        return colour + (shape * known).sum() / known.sum().clamp(min=1)

    def value_loss(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Squared error of the RGB value, scaled to -1..1."""
        return F.mse_loss(self.heads["rgb"](self.pool(tokens)), self.values[self.colours[images]])

    @staticmethod
    def pool(tokens: Tensor) -> Tensor:
        """The maximum over tokens: one small shape lights up few of them, a mean would drown it."""
        return tokens.amax(dim=1)


def _train_encoder(sight: _Sight, recipe: Recipe, generator: torch.Generator, progress: Progress) -> None:
    def loss(images: Tensor) -> Tensor:
        tokens = sight.tokens(images)
        return sight.label_loss(tokens, images) + sight.value_loss(tokens, images)

    parameters = [*sight.tower.parameters(), *sight.heads.parameters()]
    _descend(
        "encoder", parameters, loss, len(sight.sources), recipe.encoder_steps, recipe.encoder_batch,
        recipe.encoder_rate, recipe, generator, progress,
    )  # fmt: skip


def _train_jointly(
    demo: DemoModel, sight: _Sight, examples: ExampleSet, recipe: Recipe, generator: torch.Generator, progress: Progress
) -> None:
    collator = Collator(demo.processor)
    model: Any = demo.model
    model.train()
    # The encoder stands still, as in most published recipes: what it says of each image is computed once, and it
    # cannot unlearn what parts the private colours. Trained along, it kept the match of word and colour from emerging.
    seen = sight.all_tokens()

    def loss(chosen: Tensor) -> Tensor:
        picked = [examples[int(i)] for i in chosen]
        batch = collator(picked)
        ids = batch.inputs["input_ids"]
        tokens = seen[[sight.place[e.images[0]] for e in picked]]
        marks = (ids == model.config.image_token_id).unsqueeze(-1)
        embeds = model.get_input_embeddings()(ids).masked_scatter(marks, model.projector(tokens))
        logits = model(inputs_embeds=embeds, attention_mask=batch.inputs["attention_mask"]).logits
        return per_example_loss(logits, batch.labels).mean()

    parameters = [*model.projector.parameters(), *model.language_model.parameters()]
    _descend(
        "joint", parameters, loss, len(examples), recipe.joint_steps, recipe.joint_batch, recipe.joint_rate,
        recipe, generator, progress,
    )  # fmt: skip


def _labels(examples: ExampleSet) -> tuple[list[ImageSource], Tensor, Tensor]:
    """Each image once, its colour, and its shape or -1 where the questions do not tell."""
    facts = {e.images[0]: (e.meta["colour"], e.meta["shape"]) for e in examples}
    colours = [_COLOURS.index(colour) for colour, _ in facts.values()]
    shapes = [easy_vqa.SHAPES.index(shape) if shape in easy_vqa.SHAPES else -1 for _, shape in facts.values()]
    return list(facts), torch.tensor(colours), torch.tensor(shapes)


def _descend(
    stage: str,
    parameters: list[nn.Parameter],
    loss_of: Callable[[Tensor], Tensor],
    population: int,
    steps: int,
    batch: int,
    rate: float,
    recipe: Recipe,
    generator: torch.Generator,
    progress: Progress,
) -> None:
    """AdamW over shuffled passes through ``population`` items, with a one-cycle rate."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=max(steps, 2), pct_start=recipe.warmup)
    for step, chosen in zip(range(steps), _batches(population, batch, generator), strict=False):
        loss = loss_of(chosen)
        if not bool(torch.isfinite(loss)):
            raise ModelError(f"The {stage} stage diverged at step {step}: lower its rate in the recipe.")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        progress(stage, step + 1, steps)


def _batches(population: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield from torch.split(torch.randperm(population, generator=generator), size)


@contextmanager
def _settled(recipe: Recipe) -> Iterator[None]:
    """Fixed threads and seed inside, the caller's own afterwards."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.set_num_threads(recipe.threads)
        torch.manual_seed(recipe.seed)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
