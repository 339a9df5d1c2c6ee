import json
import math
from functools import partial

import numpy as np
import pytest
import torch

import mllm.inference.answer
from mllm.inference import Answerer, load_adapter_folder, load_plain
from mllm.inference.predict import Questions, predict_file
from mllm.inference.views import views
from mllm.language import LANGUAGES
from mllm.load import load_base
from mllm.tasks.collate import Collator
from mllm.tasks.example import Example, ImageSource
from mllm.testing import random_image, tiny_composed, tiny_llava, tiny_qwen25vl, tiny_smolvlm
from mllm.tokens import TokenPlan, attach_tokens
from mllm.tune import attach
from umbel.config import LoraConfig
from umbel.errors import DataError, ModelError, RunError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("inference")
    tiny_composed("siglip").save(root / "base")
    for n in range(5):
        random_image(n, 40, 24).save(root / f"{n}.png")
    lines = [
        {"image": f"{n}.png" if n else None, "question": f"what is {w} ?"} for n, w in enumerate(["a", "red", "the"])
    ]
    lines.append({"image": ["3.png", "4.png"], "question": "is there a circle ?", "answer": "yes"})
    (root / "q.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    return root


@pytest.fixture(scope="module")
def subject(folder):
    return load_plain(str(folder / "base"), "none")


@pytest.fixture(scope="module")
def questions(folder):
    return Questions.read(folder / "q.jsonl")


def test_answers_are_those_of_generate_alone_or_in_company(subject, questions):
    answerer = Answerer(subject.model, subject.collator, most_tokens=5)
    together = answerer.answer(questions.examples)
    for example, found in zip(questions.examples, together, strict=True):
        (alone,) = answerer.answer([example])
        assert alone.text == found.text
        assert abs(alone.probability - found.probability) < 1e-4
        prompt = subject.collator.prompts([example])
        ids = subject.model.generate(**prompt, max_new_tokens=5, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        assert subject.collator.tokenizer.decode(ids, skip_special_tokens=True).strip() == found.text
        assert 0 < found.probability <= 1
        assert found.tokens <= 5


FAMILIES = {
    **{name: partial(tiny_composed, "siglip", language=name) for name in LANGUAGES},
    "llava-hub": tiny_llava,
    "smolvlm": tiny_smolvlm,
    "qwen2_5_vl": tiny_qwen25vl,
}


def slowly(model, collator, example, most):
    """Greedy answer of one example by whole passes over all that was said: (ids, probability)."""
    inputs, said, logs = collator.prompts([example]), [], 0.0
    config = model.config
    for _ in range(most):
        with torch.no_grad():
            scores = model(**inputs, use_cache=False).logits[0, -1].float()
        scores[getattr(config, "image_token_id", getattr(config, "image_token_index", None))] = float("-inf")
        best, token = scores.log_softmax(-1).max(-1)
        said.append(int(token))
        logs += float(best)
        if said[-1] == collator.eos_id:
            break
        width = inputs["input_ids"].shape
        fill = {"input_ids": int(token), "attention_mask": 1}
        for name, value in list(inputs.items()):
            if value.shape == width:
                inputs[name] = torch.cat([value, value.new_full((1, 1), fill.get(name, 0))], dim=1)
    return said, math.exp(logs)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_with_a_cache_are_those_of_whole_passes(family, questions):
    """Every language model, and three families of transformers: padded on the left, with one, two and no images."""
    torch.set_num_threads(1)
    made = FAMILIES[family]()
    collator = Collator(made.processor)
    # Qwen's images must be parted by marks, which its chat template writes and the tiny tokenizer has none of.
    examples = [e for e in questions.examples if family != "qwen2_5_vl" or len(e.images) < 2]
    found = {c: Answerer(made.model, collator, most_tokens=7, cache=c).answer(examples) for c in (True, False)}
    for number, example in enumerate(examples):
        said, probability = slowly(made.model, collator, example, 7)
        text = collator.tokenizer.decode(said, skip_special_tokens=True).strip()
        for answers in found.values():
            answer = answers[number]
            assert (answer.text, answer.tokens, answer.complete) == (text, len(said), said[-1] == collator.eos_id)
            assert answer.probability == pytest.approx(probability, rel=1e-3)


def test_a_cache_is_used_unless_it_would_change_what_is_computed(subject, questions, folder, monkeypatch):
    widths = []
    handle = subject.model.language_model.register_forward_pre_hook(
        lambda _m, _a, kwargs: widths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    (answer,) = Answerer(subject.model, subject.collator, most_tokens=4).answer(questions.examples[:1])
    handle.remove()
    assert widths[0] > 1
    assert widths[1:] == [1] * (answer.tokens - 1)

    base = load_base(str(folder / "base"), "none")
    attach_tokens(base.model, base.processor, TokenPlan("withdraw", 1.0, 1))
    seen = []
    plain = mllm.inference.answer.generate
    monkeypatch.setattr(mllm.inference.answer, "generate", lambda *a, **k: seen.append(k["cache"]) or plain(*a, **k))
    for window in (None, 1000, 8):
        base.model.config.text_config.sliding_window = window
        Answerer(base.model, Collator(base.processor), most_tokens=2).answer(questions.examples)
    assert seen == [True, True, False]


def test_what_a_checkpoint_asks_of_generation_is_not_followed(subject, questions):
    plain = Answerer(subject.model, subject.collator, most_tokens=6).answer(questions.examples)
    before = subject.model.generation_config.to_dict()
    subject.model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=9.0, num_beams=3)
    try:
        assert Answerer(subject.model, subject.collator, most_tokens=6).answer(questions.examples) == plain
    finally:
        subject.model.generation_config.update(**before)


def test_the_average_of_views_is_the_average(subject, questions):
    example = questions.examples[1]
    seen = views(example, 4, 0)
    assert seen[0].images[0].open().tobytes() == example.images[0].open().tobytes()
    sizes = {view.images[0].open().size for view in seen}
    assert sizes == {(40, 24)}
    assert len({view.images[0].open().tobytes() for view in seen}) == 4
    assert views(questions.examples[0], 4, 0) == [questions.examples[0]]
    (answer,) = Answerer(subject.model, subject.collator, most_tokens=1, augment=4).answer([example])
    with torch.no_grad():
        logits = subject.model(**subject.collator.prompts(seen)).logits[:, -1]
    logits[:, subject.model.config.image_token_id] = float("-inf")
    mean = logits.softmax(-1).mean(0)
    assert abs(float(mean.max()) - answer.probability) < 1e-5


def test_tuning_a_prompt_makes_the_first_token_surer_and_leaves_no_trace(subject, questions):
    example = questions.examples[1]
    names = {name for name, _ in subject.model.named_parameters()}
    plain = Answerer(subject.model, subject.collator, most_tokens=1, augment=4)
    first = plain.answer([example])
    sure = [
        Answerer(subject.model, subject.collator, most_tokens=1, augment=4, tuning_steps=n, tuning_rate=0.05).answer(
            [example]
        )
        for n in (1, 12)
    ]
    assert sure[1][0].probability > sure[0][0].probability
    assert plain.answer([example]) == first
    assert {name for name, _ in subject.model.named_parameters()} == names


def test_impossible_counts_are_refused(subject):
    with pytest.raises(ModelError, match="at least 2 views"):
        Answerer(subject.model, subject.collator, tuning_steps=2)
    with pytest.raises(ModelError, match="raise them"):
        Answerer(subject.model, subject.collator, most_tokens=0)


@pytest.mark.parametrize("method", ["fastv", "tome"])
def test_fewer_tokens_answer_too(method, folder, questions):
    base = load_base(str(folder / "base"), "none")
    attach_tokens(base.model, base.processor, TokenPlan(method, 0.25, 1))
    answerer = Answerer(base.model, Collator(base.processor), most_tokens=3)
    together = answerer.answer(questions.examples)
    assert [answerer.answer([e])[0].text for e in questions.examples] == [a.text for a in together]


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "adapter", "prompt", "prefix"])
def test_an_adapters_folder_answers_as_the_tuned_model(method, folder, questions, tmp_path):
    base = load_base(str(folder / "base"), "none")
    tuned = attach(base, LoraConfig(method=method, rank=2, tokens=2), seed=0)
    vector = tuned.vector() + np.random.default_rng(0).normal(size=tuned.spec.size).astype(np.float32) * np.float32(0.2)
    tuned.load(vector)
    expected = Answerer(tuned.model, Collator(base.processor), most_tokens=3).answer(questions.examples)
    tuned.save(tmp_path, vector)
    loaded = load_adapter_folder(tmp_path, None, "none")
    got = Answerer(loaded.model, loaded.collator, most_tokens=3).answer(questions.examples)
    assert [a.text for a in got] == [a.text for a in expected]
    assert all(abs(a.probability - b.probability) < 1e-4 for a, b in zip(got, expected, strict=True))


def test_a_folder_that_holds_no_adapter_or_another_models_is_refused(folder, tmp_path):
    with pytest.raises(ModelError, match="holds no adapter"):
        load_adapter_folder(tmp_path, None, "none")
    tuned = attach(load_base(str(folder / "base"), "none"), LoraConfig(rank=2), seed=0)
    tuned.save(tmp_path)
    other = tiny_composed("siglip", layers=1).save(tmp_path / "other")
    with pytest.raises(ModelError, match="does not fit"):
        load_adapter_folder(tmp_path, str(other), "none")


class Broken(Exception):
    pass


class Flaky:
    """Answers like the wrapped one, and breaks after some batches."""

    def __init__(self, inner, batches):
        self.inner, self.left, self.asked = inner, batches, []

    def answer(self, examples):
        if not self.left:
            raise Broken
        self.left -= 1
        self.asked += [example.question for example in examples]
        return self.inner.answer(examples)


def test_a_broken_prediction_goes_on_where_it_was(subject, questions, tmp_path):
    answerer = Answerer(subject.model, subject.collator, most_tokens=3)
    whole, target = tmp_path / "whole.jsonl", tmp_path / "deep" / "out.jsonl"
    seen = []
    predict_file(questions, whole, answerer, identity="m", batch_size=2, progress=seen.append)
    assert seen == [0, 2, 4]
    with pytest.raises(Broken):
        predict_file(questions, target, Flaky(answerer, 1), identity="m", batch_size=2)
    assert not target.exists()
    partial = target.with_name("out.jsonl.partial")
    with partial.open("ab") as stream:
        stream.write(b'{"line": 3, "quest')  # torn by a crash
    with pytest.raises(RunError, match="other questions or by another model"):
        predict_file(questions, target, answerer, identity="another", batch_size=2)
    rest = Flaky(answerer, 9)
    assert predict_file(questions, target, rest, identity="m", batch_size=2) == 4
    assert rest.asked == [e.question for e in questions.examples[2:]]
    assert target.read_bytes() == whole.read_bytes()
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [line["line"] for line in lines] == [1, 2, 3, 4]
    assert set(lines[0]) == {"line", "question", "answer", "probability", "complete"}
    assert {p.name for p in target.parent.iterdir()} == {"out.jsonl"}
    with pytest.raises(RunError, match="exists already"):
        predict_file(questions, target, answerer, identity="m", batch_size=2)
    torn = tmp_path / "torn.jsonl"
    torn.with_name("torn.jsonl.partial").write_bytes(b'{"umb')
    assert predict_file(questions, torn, answerer, identity="m", batch_size=4) == 4


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no question"),
        ("{}\n", "line 1 has no 'question'"),
        ("x\n", "is not JSON"),
        ('{"question": "a", "image": "../x"}', "outside"),
    ],
)
def test_bad_files_of_questions_are_refused(text, sentence, tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=sentence):
        Questions.read(path)
    with pytest.raises(DataError, match="cannot be read"):
        Questions.read(tmp_path / "absent.jsonl")


def test_a_missing_image_leaves_what_was_answered(subject, folder, tmp_path):
    questions = Questions.read(folder / "q.jsonl")
    broken = Questions(
        questions.path,
        (*questions.examples[:2], Example((ImageSource(tmp_path / "absent.png"),), "what ?", "?")),
        (1, 2, 3),
        questions.fingerprint,
    )
    answerer = Answerer(subject.model, subject.collator, most_tokens=2)
    with pytest.raises(DataError, match="does not exist"):
        predict_file(broken, tmp_path / "out.jsonl", answerer, identity="m", batch_size=2)
    assert (tmp_path / "out.jsonl.partial").read_text().count("\n") == 3
