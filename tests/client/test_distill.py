import numpy as np
import pytest
import torch

from client.distill import DistillingCollator, OtherModel, PreviousAdapter, SoftBatch
from client.losses import example_losses
from client.rounding import fake_quantize, rounded
from client.trainer import Trainer
from mllm.load import load_base
from mllm.rows import row_map
from mllm.tasks.base import MemorySet
from mllm.tasks.collate import Collator
from mllm.tasks.example import Example, ImageSource
from mllm.testing import random_image, tiny_composed
from mllm.tune import attach
from privacy.clipping import make_engine
from strategies.client_round import ClientRound
from strategies.fedit import FedIT
from umbel.config import LoraConfig, TrainConfig
from umbel.errors import ModelError


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    return str(tiny_composed("siglip").save(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for n in range(6):
        random_image(n).save(folder / f"{n}.png")
    words = ["red", "blue", "green", "red blue", "yes", "no"]
    return [
        Example((ImageSource(folder / f"{n}.png", keep=True),) * (1 if n != 2 else 0), "what is there ?", words[n])
        for n in range(6)
    ]


def tuned_on(folder, **options):
    base = load_base(folder, "none")
    tuned = attach(base, LoraConfig(rank=2, **options), seed=0)
    rng = np.random.default_rng(0)
    start = tuned.vector() + rng.normal(size=tuned.spec.size).astype(np.float32) * np.float32(0.05)
    tuned.load(start)
    return tuned, Collator(base.processor), start


def test_the_adapter_as_it_was_sent_teaches_nothing_new_to_itself(base_folder, examples):
    tuned, collator, start = tuned_on(base_folder)
    taught = DistillingCollator(collator, PreviousAdapter(tuned, start), 1.0, 2.0)
    batch = taught(examples)
    assert isinstance(batch, SoftBatch)
    assert float(example_losses(tuned.model, batch).detach().abs().max()) < 1e-5
    tuned.load(start + np.float32(0.05))
    moved = tuned.vector()
    again = taught(examples)
    assert torch.allclose(again.soft, batch.soft, atol=1e-6)
    assert np.array_equal(tuned.vector(), moved)
    assert (example_losses(tuned.model, again) > 1e-4).all()


def test_the_loss_is_the_mixture_it_says(base_folder, examples):
    tuned, collator, start = tuned_on(base_folder)
    teacher = PreviousAdapter(tuned, start)
    tuned.load(start + np.float32(0.03))
    hard = example_losses(tuned.model, collator(examples))
    mixed, soft = (
        example_losses(tuned.model, DistillingCollator(collator, teacher, weight, 3.0)(examples))
        for weight in (0.25, 1.0)
    )
    assert torch.allclose(mixed, 0.75 * hard + 0.25 * soft, atol=1e-6)
    batch = collator(examples)
    rows, steps = (batch.labels[:, 1:] != -100).nonzero(as_tuple=True)
    student = tuned.model(**batch.inputs).logits[rows, steps] / 3.0
    target = DistillingCollator(collator, teacher, 1.0, 3.0)(examples).soft / 3.0
    each = torch.nn.functional.kl_div(student.log_softmax(-1), target.softmax(-1), reduction="none").sum(-1) * 9
    expected = torch.stack([each[rows == i].mean() for i in range(6)])
    assert torch.allclose(soft, expected, atol=1e-5)


def test_clipping_stays_exact_with_a_teacher(base_folder, examples):
    tuned, collator, start = tuned_on(base_folder, targets="language,vision,projector")
    taught = DistillingCollator(collator, PreviousAdapter(tuned, start), 0.5, 2.0)
    tuned.load(start + np.float32(0.03))
    tuned.model.train()
    batch, found = taught(examples), []
    for kind in ("bookkeeping", "loop"):
        engine = make_engine(kind, tuned.model, tuned.parameters, 0.02)
        rows = row_map(tuned.model, batch.inputs, batch.images_per_example)
        engine.accumulate(
            lambda part: example_losses(tuned.model, part), batch, rows, 6, lambda _, i: taught([examples[i]])
        )
        found.append(torch.cat([value.flatten() for value in engine.take().values()]))
    assert (found[0] - found[1]).norm() / found[1].norm() < 1e-3
    assert found[1].norm() > 0


def test_another_model_teaches_and_other_words_are_refused(base_folder, examples, tmp_path):
    tuned, collator, _ = tuned_on(base_folder)
    other = load_base(str(tiny_composed("vit", layers=3, seed=5).save(tmp_path)), "none")
    teacher = OtherModel(other.model, Collator(other.processor))
    batch = DistillingCollator(collator, teacher, 1.0, 1.0)(examples)
    optimizer = torch.optim.Adam(tuned.parameters.values(), lr=0.02)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = example_losses(tuned.model, batch).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    changed = collator([Example(e.images, e.question, "green green") for e in examples])
    with pytest.raises(ModelError, match="other tokens"):
        teacher(examples, changed)


def test_a_trainer_distils_and_asks_for_its_teacher(base_folder, examples):
    tuned, collator, start = tuned_on(base_folder)
    data = MemorySet(examples)
    client = ClientRound(FedIT(), tuned.spec, start, 1)
    moved = {}
    for weight in (0.0, 0.95):
        chosen = {"distill": "global", "distill-weight": weight} if weight else {}
        config = TrainConfig(amount=6, **{"batch-size": 6, "learning-rate": 0.02}, **chosen)
        Trainer(tuned, collator, config).train(data, client, seed=0)
        moved[weight] = float(np.linalg.norm(tuned.vector() - start))
        batch = DistillingCollator(collator, PreviousAdapter(tuned, start), 1.0, 1.0)(examples)
        moved[weight, "kl"] = float(example_losses(tuned.model, batch).detach().mean())
    assert moved[0.95, "kl"] < 0.5 * moved[0.0, "kl"]
    config = TrainConfig(amount=1, distill="teacher", teacher="x")
    with pytest.raises(ModelError, match="collator names none"):
        Trainer(tuned, collator, config).train(data, client, seed=0)


def test_rounding_is_symmetric_and_keeps_what_is_exact():
    x = torch.tensor([[0.0, 0.5, -1.0], [0.0, 0.0, 0.0]])
    assert torch.equal(fake_quantize(x, 8)[1], x[1])
    assert torch.allclose(fake_quantize(-x, 4), -fake_quantize(x, 4))
    assert float((fake_quantize(x, 8) - x).abs().max()) <= 1 / 127 / 2 + 1e-7
    assert float((fake_quantize(x, 2)[0] - torch.tensor([0.0, 0.0, -1.0])).abs().max()) <= 1
    with pytest.raises(ModelError, match="2 to 16"):
        fake_quantize(x, 1)


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_training_sees_rounded_factors_and_moves_exact_ones(bits, base_folder, examples):
    tuned, collator, start = tuned_on(base_folder, **{"quantization-aware": bits})
    batch = collator(examples)
    with rounded(tuned) as rounding:
        assert rounding is not None
        example_losses(tuned.model, batch).mean().backward()
        through = {name: p.grad.clone() for name, p in tuned.parameters.items()}
        seen = tuned.vector()
    tuned.model.zero_grad()
    assert np.array_equal(tuned.vector(), start)
    expected = {
        n: fake_quantize(torch.from_numpy(v), 8 if bits == "int8" else 4) for n, v in tuned.spec.views(start).items()
    }
    assert np.allclose(seen, tuned.spec.flatten({n: v.numpy() for n, v in expected.items()}), atol=1e-7)
    # One step of plain SGD from the exact values along the gradient at the rounded ones: the straight-through step.
    exact = {"learning-rate": 0.1, "batch-size": 6, "max-grad-norm": 0.0}
    config = TrainConfig(optimizer="sgd", amount=1, schedule="constant", **exact)
    client = ClientRound(FedIT(), tuned.spec, start, 1)
    Trainer(tuned, collator, config).train(MemorySet(examples), client, seed=0)
    step = tuned.spec.flatten({name: g.numpy() for name, g in through.items()})
    assert np.allclose(tuned.vector(), start - 0.1 * step, atol=1e-5)
