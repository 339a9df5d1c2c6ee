"""What ``umbel audit`` audits: a model with its trainable factors, a real batch, and how to take it apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from umbel.config import RunConfig
from umbel.errors import DataError, ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from mllm.tasks.base import ExampleSet
    from umbel.rows import RowMap

TINY = "tiny:"


@dataclass(frozen=True)
class Subject:
    """The model and batch under audit.

    Attributes:
        model: in training mode.
        trainable: name to parameter.
        batch: whatever ``forward`` takes; ``size`` examples.
        forward: losses [n].
        rows: the row map, None where the family has none.
        split: example i alone.
        without: all but example i.
    """

    model: Any
    trainable: dict[str, Any]
    batch: Any
    size: int
    forward: Callable[[Any], Tensor]
    rows: Callable[[Any], RowMap | None]
    split: Callable[[Any, int], Any]
    without: Callable[[Any, int], Any]


def subject_of(name: str, config: RunConfig, examples: int) -> Subject:
    """The tiny random family ``tiny:FAMILY``, or the configured model and task under the name given.

    Raises:
        ModelError, DataError: the family, the model or the task cannot be used.
    """
    import torch

    from mllm.quiet import quiet

    torch.set_num_threads(config.train.threads)  # as a training client has them
    with quiet():
        if name.startswith(TINY):
            return _tiny(name.removeprefix(TINY), config)
        return _configured(name, config, examples)


def _tiny(family_name: str, config: RunConfig) -> Subject:
    """A ragged batch: several images, none, one, two."""
    import peft

    from mllm.lora import target_sites
    from mllm.loss import per_example_loss
    from mllm.rows import row_map, select_examples
    from mllm.testing_families import family

    made = family(family_name)
    lora = config.lora
    paths = [site.path for site in target_sites(made.model, lora)]
    adapter = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, use_rslora=lora.rslora, target_modules=paths)
    model = peft.get_peft_model(made.model, adapter).train()
    counts = [3, 0, 1, 2]
    batch = made.batch(counts, seed=1)

    def chosen(part: Any, which: list[int]) -> Any:
        inputs, kept = select_examples(model, part[0], part[2], which)
        return inputs, part[1][which], kept

    return Subject(
        model,
        _stirred({name: p for name, p in model.named_parameters() if p.requires_grad}),
        (batch.inputs, batch.labels, counts),
        len(counts),
        lambda part: per_example_loss(model(**part[0]).logits, part[1]),
        lambda part: row_map(model, part[0], part[2]),
        lambda part, i: chosen(part, [i]),
        lambda part, i: chosen(part, _others(len(part[2]), i)),
    )


def enough_examples(pool: ExampleSet, examples: int) -> ExampleSet:
    """The pool itself; raises DataError when it holds fewer."""
    if len(pool) < examples:
        raise DataError(f"The task has {len(pool)} training examples, {examples} were asked for: lower --examples.")
    return pool


def _configured(name: str, config: RunConfig, examples: int) -> Subject:
    """The first examples of the task's training pool, through the model's own processor."""
    from mllm.loss import per_example_loss
    from mllm.rows import row_map
    from mllm.warm import warm_model, warm_task

    warm = warm_model(config.model_copy(update={"model": config.model.model_copy(update={"name": name})}))
    pool = enough_examples(warm_task(config).train, examples)
    picked = [pool[i] for i in range(examples)]
    model = warm.tuned.model.train()
    device = next(model.parameters()).device

    def forward(part: list[Any]) -> Tensor:
        batch = warm.collator(part).to(device)
        return per_example_loss(model(**batch.inputs, use_cache=False).logits, batch.labels)

    def rows(part: list[Any]) -> RowMap | None:
        batch = warm.collator(part)
        try:
            return row_map(model, batch.inputs, batch.images_per_example)
        except ModelError:
            return None  # the engine then says what it needs; the loop needs nothing

    return Subject(
        model,
        _stirred(dict(warm.tuned.parameters)),
        picked,
        examples,
        forward,
        rows,
        lambda part, i: [part[i]],
        lambda part, i: [part[k] for k in _others(len(part), i)],
    )


def _stirred(trainable: dict[str, Any]) -> dict[str, Any]:
    """Fresh LoRA has B = 0, hence no gradient at A; an audit needs one everywhere, as after the first steps."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for parameter in trainable.values():
        if not bool(parameter.detach().any()):
            noise = torch.randn(parameter.shape, generator=generator) * 0.02
            parameter.data.copy_(noise.to(parameter.device))
    return trainable


def _others(size: int, gone: int) -> list[int]:
    return [i for i in range(size) if i != gone]
