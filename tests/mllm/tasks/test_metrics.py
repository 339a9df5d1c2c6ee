from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mllm.loss import per_example_loss
from mllm.tasks.base import MemorySet
from mllm.tasks.collate import Collator
from mllm.tasks.example import Example, ImageSource
from mllm.tasks.metrics import evaluate, exact_match
from mllm.testing import Tiny, tiny_composed
from tests.mllm.tasks.conftest import save_image
from umbel.errors import DataError


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, list[Example]]:
    """A tiny model that has half learnt its examples, so that some answers are right and some are wrong."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("images")
    tiny = tiny_composed(layers=1)
    answers = ["red", "blue", "yes no", "green", "no"]
    examples = [
        Example(
            (ImageSource(save_image(folder / f"{i}.png", seed=i)),) * (i % 3 != 2),
            ["what colour is the shape?", "is there a square?"][i % 2],
            answers[i % 5],
            {"type": ["colour", "square"][i % 2]},
        )
        for i in range(16)
    ]
    collator = Collator(tiny.processor)
    optimizer = torch.optim.AdamW(tiny.model.parameters(), lr=3e-3)
    for _ in range(15):
        batch = collator(examples[:9])
        per_example_loss(tiny.model(**batch.inputs).logits, batch.labels).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return tiny, examples


def _generated(tiny: Tiny, collator: Collator, example: Example) -> bool:
    prompts = collator.prompts([example])
    wanted = collator.answer_ids(example.answer, collator.prompt(example))
    out = tiny.model.generate(**prompts, do_sample=False, max_new_tokens=len(wanted))
    found: list[int] = out[0, prompts["input_ids"].shape[1] :].tolist()
    return found == wanted


def test_teacher_forced_match_equals_greedy_generation(learnt: tuple[Tiny, list[Example]]) -> None:
    tiny, examples = learnt
    collator = Collator(tiny.processor)
    batch = collator(examples)
    with torch.no_grad():
        forced = exact_match(tiny.model.eval()(**batch.inputs).logits, batch.labels).tolist()
    assert 0 < sum(forced) < len(examples), "the case must hold right and wrong answers"
    assert forced == [_generated(tiny, collator, example) for example in examples]


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_the_batch_size_does_not_matter(learnt: tuple[Tiny, list[Example]], batch_size: int) -> None:
    tiny, examples = learnt
    collator = Collator(tiny.processor)
    whole = evaluate(tiny.model, collator, MemorySet(examples), batch_size=16)
    split = evaluate(tiny.model, collator, MemorySet(examples), batch_size=batch_size)
    assert (split.accuracy, split.count, split.by_type) == (whole.accuracy, 16, whole.by_type)
    assert split.loss == pytest.approx(whole.loss, rel=1e-4)
    assert sum(count for _, count in whole.by_type.values()) == 16
    assert sum(right for right, _ in whole.by_type.values()) == round(whole.accuracy * 16)
    assert list(whole.by_type) == ["colour", "square"]


def test_a_limit_takes_the_same_subset_each_time(learnt: tuple[Tiny, list[Example]]) -> None:
    tiny, examples = learnt
    collator = Collator(tiny.processor)
    seen: list[list[int]] = []

    class Watched(Collator):
        def __call__(self, chosen: Any) -> Any:
            seen.append([id(e) for e in chosen])
            return collator(chosen)

    watched = Watched(tiny.processor)
    for seed in (1, 1, 2):
        assert evaluate(tiny.model, watched, MemorySet(examples), batch_size=8, limit=6, seed=seed).count == 6
    assert seen[0] == seen[1] != seen[2]
    assert evaluate(tiny.model, collator, MemorySet(examples), batch_size=8, limit=100).count == 16


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_kept(learnt: tuple[Tiny, list[Example]], training: bool) -> None:
    tiny, examples = learnt
    tiny.model.train(training)
    evaluate(tiny.model, Collator(tiny.processor), MemorySet(examples[:2]), batch_size=2)
    assert tiny.model.training is training
    tiny.model.eval()


def test_impossible_evaluations_are_refused(learnt: tuple[Tiny, list[Example]]) -> None:
    tiny, examples = learnt
    collator = Collator(tiny.processor)
    with pytest.raises(DataError, match="is empty"):
        evaluate(tiny.model, collator, MemorySet([]), batch_size=1)
    for options in ({"batch_size": 0}, {"batch_size": 1, "limit": -1}):
        with pytest.raises(DataError, match="impossible"):
            evaluate(tiny.model, collator, MemorySet(examples), **options)


def test_logits_that_are_not_finite_count_as_wrong(learnt: tuple[Tiny, list[Example]]) -> None:
    tiny, examples = learnt

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            return SimpleNamespace(logits=torch.full((*input_ids.shape, 40), float("nan")))

    found = evaluate(Broken(), Collator(tiny.processor), MemorySet(examples), batch_size=4)
    assert found.accuracy == 0
    assert not found.loss < float("inf")


def test_exact_match_asks_for_every_answer_token() -> None:
    labels = torch.tensor([[-100, -100, 2, 1], [-100, 3, 1, -100], [-100, 3, 1, -100], [-100] * 4])
    logits = torch.zeros(4, 4, 5)
    logits[0, 1, 2] = logits[0, 2, 1] = 1.0  # right
    logits[1, 0, 3] = logits[1, 1, 1] = 1.0  # right, then padding
    logits[2, 0, 3] = logits[2, 1, 4] = 1.0  # the answer, but it does not end
    assert exact_match(logits, labels).tolist() == [True, True, False, False]
