"""``umbel chat``, ``predict``, ``model`` and ``benchmark``, as a shell calls them."""

import json

import numpy as np
import pytest

from mllm.inference import Answerer
from mllm.load import load_base
from mllm.testing import random_image, tiny_composed
from mllm.tune import attach
from tests.federated import lines as rounds
from tests.federated import make_folder, options, run_in_memory
from umbel.cli.main import main
from umbel.config import LoraConfig


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    tiny_composed().save(folder / "base")
    random_image(0).save(folder / "a.png")
    (folder / "q.jsonl").write_text('{"image": "a.png", "question": "what colour is the shape ?"}\n' * 3)
    tuned = attach(load_base(str(folder / "base"), "none"), LoraConfig(rank=2), seed=0)
    tuned.save(folder / "adapter", tuned.vector() + np.float32(0.05))
    return folder


def call(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_chat_answers_on_stdout(root, capsys):
    plain = ["chat", "--base", root / "base", "--image", root / "a.png", "--quantization", "none", "--most-tokens", 3]
    code, out, err = call(capsys, *plain, "what colour is the shape ?")
    assert code == 0
    assert out.count("\n") == 1
    assert "probability" in err
    tuned = call(
        capsys,
        "chat",
        "--adapter",
        root / "adapter",
        "--image",
        root / "a.png",
        "--augment",
        2,
        "--tuning-steps",
        1,
        "what ?",
    )
    assert tuned[0] == 0


@pytest.fixture(scope="module")
def clip(root):
    frames = [random_image(number) for number in range(6)]
    frames[0].save(root / "clip.webp", save_all=True, append_images=frames[1:], lossless=True)
    return root / "clip.webp"


@pytest.fixture
def told(root, capsys, monkeypatch):
    """Calls ``umbel chat`` and returns the answer with its probability in full, of which the shell sees two digits."""
    found = []
    answer = Answerer.answer

    def noting(self, examples):
        found.extend(answer(self, examples))
        return found[-len(examples) :]

    monkeypatch.setattr(Answerer, "answer", noting)

    def ask(*arguments):
        plain = ["chat", "--base", root / "base", "--quantization", "none", "--most-tokens", 3, *arguments]
        code, out, err = call(capsys, *plain, "what colour is the shape ?")
        assert code == 0, err
        assert out.strip() == found[-1].text
        return found[-1].text, found[-1].probability

    return ask


def test_chat_sees_a_video_as_its_frames(root, clip, told):
    pictures = []
    for number in (0, 2, 5):  # three of six, at even distances
        random_image(number).save(root / f"frame{number}.png")
        pictures += ["--image", root / f"frame{number}.png"]
    seen = told("--video", clip, "--frames", 3)
    assert seen == told(*pictures)
    assert seen != told("--video", clip, "--frames", 1)


def test_predict_reads_videos_and_says_how_many_frames(root, clip, capsys, tmp_path):
    asked = root / "videos.jsonl"
    asked.write_text(json.dumps({"video": clip.name, "question": "what colour is the shape ?"}) + "\n")
    answers = []
    for frames in (1, 4):
        target = tmp_path / f"out{frames}.jsonl"
        command = ["predict", asked, target, "--base", root / "base", "--quantization", "none", "--frames", frames]
        code, _, err = call(capsys, *command, "--most-tokens", 3)
        assert code == 0, err
        answers.append(json.loads(target.read_text()))
    assert answers[0]["probability"] != answers[1]["probability"]


@pytest.mark.parametrize("command", ["chat", "predict"])
def test_a_video_that_cannot_be_read_gets_one_sentence(command, root, capsys, tmp_path):
    (tmp_path / "movie.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42")
    if command == "chat":
        rest = ["--video", tmp_path / "movie.mp4", "what ?"]
    else:
        line = {"video": "movie.mp4", "question": "what ?"}
        (tmp_path / "q.jsonl").write_text(json.dumps(line) + "\n")
        rest = [tmp_path / "q.jsonl", tmp_path / "out.jsonl"]
    code, _, err = call(capsys, command, "--base", root / "base", *rest)
    assert code == 20
    assert "folder of its frames" in err
    assert "Traceback" not in err
    assert not (tmp_path / "out.jsonl").exists()


def test_predict_writes_every_answer(root, capsys, tmp_path):
    target = tmp_path / "out.jsonl"
    code, out, _ = call(capsys, "predict", root / "q.jsonl", target, "--adapter", root / "adapter", "--most-tokens", 2)
    assert code == 0
    assert "3 answers" in out
    assert (
        len(set(target.read_text().replace('"line": 2', '"line": 1').replace('"line": 3', '"line": 1').splitlines()))
        == 1
    )
    assert call(capsys, "predict", root / "q.jsonl", target, "--base", root / "base")[0] == 70


def test_a_run_is_asked_by_its_id(tiny_root, root, capsys, tmp_path):
    folder = run_in_memory(options(tiny_root, run__directory=str(tmp_path), run__id="mine", federation__rounds=1))
    for name in ("mine", folder, folder / "adapter"):
        code, out, _ = call(
            capsys, "chat", "--directory", tmp_path, "--adapter", name, "--image", root / "a.png", "what ?"
        )
        assert code == 0
        assert out.strip() or out == "\n"
    code, _, err = call(capsys, "chat", "--directory", tmp_path, "--adapter", "mine", "--base", "demo", "what ?")
    assert code == 10
    assert "leave --base out" in err


@pytest.mark.parametrize("command", ["chat", "predict"])
def test_a_question_longer_than_the_context_gets_one_sentence(command, root, capsys, tmp_path):
    question = "what " * 5000
    if command == "chat":
        rest = ["--image", root / "a.png", question]
    else:
        line = {"image": "a.png", "question": question}
        (root / "long.jsonl").write_text(json.dumps(line) + "\n")
        rest = [root / "long.jsonl", tmp_path / "out.jsonl"]
    code, out, err = call(capsys, command, "--base", root / "base", "--quantization", "none", *rest)
    assert code == 20
    said = " ".join(err.split())
    assert "tokens, 16 of them image tokens, and the language model takes at most 1024: give it fewer images" in said
    assert "Traceback" not in err
    assert not out


def test_a_site_with_a_row_longer_than_the_context_says_so_and_sends_nothing(tiny_root, tmp_path, caplog):
    data = make_folder(tmp_path / "data")
    lines = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    lines[0]["question"] = "what " * 5000
    (data / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flat = options(tiny_root, run__directory=str(tmp_path), task__data=str(data), federation__rounds=1)
    folder = run_in_memory(flat | {"train.unit": "epochs", "train.amount": 1})
    assert "16 of them image tokens, and the language model takes at most 1024: give it fewer images" in caplog.text
    assert (rounds(folder)[0]["survivors"], rounds(folder)[0]["rejected"]) == (3, 1)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["chat", "what ?"], 10, "There is no model to ask"),
        (["chat", "--adapter", "nowhere", "what ?"], 70, "neither a run nor a folder"),
        (["chat", "--base", "demo", "--quantization", "int3", "what ?"], 10, "is unknown"),
        (["chat", "--base", "demo", "--quantization", "int8-dynamic", "what ?"], 10, "silently wrong gradients"),
        (["model", "inspect", "-c", "model.quantization=int8-dynamic"], 10, "silently wrong gradients"),
        (["chat", "--base", "{root}/base", "--image", "{root}/none.png", "what ?"], 20, "does not exist"),
        (["predict", "{root}/none.jsonl", "{root}/x.jsonl", "--base", "{root}/base"], 20, "cannot be read"),
        (["model", "inspect", "-c", "model.name={root}/nothing"], 30, "neither demo nor in the zoo"),
        (["model", "inspect", "-c", "model.quantization-parts=vision:int2"], 10, "is no part:backend"),
        (["benchmark", "nothing"], 10, "is unknown"),
    ],
)
def test_bad_input_gets_one_sentence(arguments, code, sentence, root, capsys):
    found, _, err = call(capsys, *(argument.replace("{root}", str(root)) for argument in arguments))
    assert found == code
    assert sentence in err
    assert "Traceback" not in err


def test_inspect_shows_every_layer(root, capsys):
    chosen = [
        "-c",
        f"model.name={root / 'base'}",
        "-c",
        "model.quantization=nf4",
        "-c",
        "model.quantization-parts=projector:int8",
    ]
    code, out, _ = call(capsys, "model", "inspect", *chosen, "--json")
    assert code == 0
    body = json.loads(out)
    assert {m["backend"] for m in body["modules"]} == {"nf4", "int8"}
    assert all(0 < m["error"] < 0.2 and m["after"] < m["before"] for m in body["modules"])
    code, out, _ = call(capsys, "model", "inspect", *chosen)
    assert code == 0
    assert "as nf4" in out


def test_benchmarks_are_listed(capsys):
    code, out, _ = call(capsys, "benchmark")
    assert code == 0
    assert "tokens" in out
