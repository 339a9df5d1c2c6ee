"""From a name of the zoo to a directory: tiny random weights made on the spot, or published ones converted once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mllm.checkpoint_hash import checkpoint_hash
from mllm.config import ComposedConfig
from mllm.modeling import ComposedForConditionalGeneration
from mllm.processing import ComposedProcessor
from mllm.tokenizer import IMAGE, word_tokenizer
from mllm.zoo.keys import KEYS
from mllm.zoo.native import NATIVE
from mllm.zoo.published import KeyReport, Published, load_published
from mllm.zoo.system import SIZES, System
from mllm.zoo.systems import SYSTEMS
from umbel.errors import ModelError
from umbel.paths import home

_VERSION = 2
"""Raised when the same configuration gives other files."""
_SEED = 0


def split_name(name: str) -> tuple[str, str, str] | None:
    """``NAME[:SIZE][=WEIGHTS]`` to its three parts, or None when NAME is not in the zoo.

    Raises:
        ModelError: the size is unknown, or a family of transformers was given weights.
    """
    head, _, weights = name.partition("=")
    label, _, size = head.partition(":")
    if label not in SYSTEMS and label not in NATIVE:
        return None
    if (size or "full") not in SIZES:
        raise ModelError(f"Size {size!r} of {label} is unknown: choose {' or '.join(SIZES)}.")
    if weights and (label in NATIVE or size == "tiny"):
        raise ModelError(
            f"{label} takes no weights in this form: give the directory or hub id as the model's name, or the full "
            "size of a composed system."
        )
    return label, size or "full", weights


def locate(name: str, fetch: Callable[[str], Path]) -> Path | str | None:
    """The directory of a model of the zoo, made now if it is not there yet.

    Args:
        name: ``bunny-v1``, ``bunny-v1:tiny``, or ``bunny-v1=DIRECTORY,TOWER`` with published weights at hand.
        fetch: from a directory or hub id to a directory.

    Returns:
        A directory; the hub id of a family of transformers; or None when the name is not in the zoo.

    Raises:
        ModelError: the published weights cannot be had, are not whole, or the form is wrong.
    """
    parts = split_name(name)
    if parts is None:
        return None
    label, size, weights = parts
    if label in NATIVE:
        return _native(label) if size == "tiny" else NATIVE[label].hub
    system = SYSTEMS[label]
    if size == "tiny":
        return _tiny(system)
    return _converted(system, [part.strip() for part in weights.split(",") if part.strip()], fetch)


def _place(label: str, what: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps({"version": _VERSION, **what}, sort_keys=True).encode()).hexdigest()
    return home() / "bases" / f"zoo-{label}-{digest[:16]}"


def _tiny(system: System) -> Path:
    tokenizer = word_tokenizer(_words())
    config = system.config("tiny", len(tokenizer), int(tokenizer.convert_tokens_to_ids(IMAGE)))

    def write(folder: Path) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            model = ComposedForConditionalGeneration(config)
        model.save_pretrained(folder)
        ComposedProcessor(tokenizer, system.image(config), config.tokens_per_image).save_pretrained(folder)

    return _made(_place(f"{system.name}-tiny", {"config": config.to_json_string(), "words": len(tokenizer)}), write)


def native_makers() -> Mapping[str, Callable[..., Any]]:
    """What makes the tiny form of each family of :data:`NATIVE`, given ``seed``."""
    from mllm import testing
    from mllm.testing_natives import NATIVES

    return {
        "llava": testing.tiny_llava,
        "smolvlm": testing.tiny_smolvlm,
        "qwen2_5_vl": testing.tiny_qwen25vl,
        **NATIVES,
    }


def _native(label: str) -> Path:
    make = native_makers()[label]
    return _made(_place(f"{label}-tiny", {"maker": label}), lambda folder: make(seed=_SEED).save(folder))


def _made(target: Path, write: Callable[[Path], object]) -> Path:
    from mllm.bases.store import _building

    if not (target / "config.json").is_file():
        with _building(target) as folder:
            write(folder)
    return target


def _words() -> set[str]:
    from mllm.tasks import easy_vqa
    from mllm.testing import WORDS

    return {*WORDS, *easy_vqa.ANSWERS, *_QUESTION_WORDS.split()}


_QUESTION_WORDS = (
    "what is the color of colour shape in image does contain a an not is there are present ? ! . , this that which "
    "describe picture how many where and or"
)


def _converted(system: System, sources: Sequence[str], fetch: Callable[[str], Path]) -> Path:
    wanted = list(sources) or list(system.weights)
    if not wanted:
        raise ModelError(
            f"{system.title} has no published weights to fetch: give directories of your own as "
            f'model.weights, or use model.size="tiny".'
        )
    folders = [(prefix, fetch(source)) for prefix, source in map(_prefixed, wanted)]
    marks = [[prefix, checkpoint_hash(folder)] for prefix, folder in folders]
    target = _place(system.name, {"sources": marks})
    return _made(target, lambda folder: convert(system, folders, folder))


def _prefixed(source: str) -> tuple[str, str]:
    """``prefix=source`` or ``source``."""
    prefix, sign, rest = source.partition("=")
    return (prefix, rest) if sign else ("", source)


def convert(
    system: System, folders: Sequence[tuple[str, Path]], target: Path, config: ComposedConfig | None = None
) -> KeyReport:
    """Writes a published checkpoint as a composed one, with its processor.

    Args:
        system: a row of the zoo.
        folders: directories of safetensors, each with the prefix that its names get; the first one has the tokenizer.
        target: an existing directory.
        config: another configuration than the system's own.

    Returns:
        What became of every key.

    Raises:
        ModelError: the checkpoint is not whole, or there is no tokenizer.
    """
    from transformers.initialization import no_init_weights

    tensors = Published(folders)
    tokenizer = _tokenizer(folders[0][1])
    token = int(tokenizer.convert_tokens_to_ids(IMAGE))
    config = config or system.config("full")
    dtype = tensors[next(iter(tensors))].dtype
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype if dtype.is_floating_point else before)
        with no_init_weights():
            model = ComposedForConditionalGeneration(config)
        model.tie_weights()  # left out with the initialisation
    finally:
        torch.set_default_dtype(before)
    report = load_published(model, KEYS[system.name](config), tensors)
    report.check(system.title)
    if token >= config.text_config.vocab_size:  # type: ignore[union-attr]
        model.language_model.resize_token_embeddings(len(tokenizer))  # type: ignore[operator]
        config.text_config.vocab_size = model.language_model.config.vocab_size  # type: ignore[union-attr]
    model.config.image_token_id = token
    model.generation_config.suppress_tokens = [token]
    model.save_pretrained(target)
    ComposedProcessor(tokenizer, system.image(config), config.tokens_per_image).save_pretrained(target)
    (target / "keys.json").write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    return report


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # tokenizers raise whatever their formats raise
        first = str(error).strip().partition("\n")[0].rstrip(".")
        raise ModelError(
            f"{folder} holds no tokenizer that loads without code of its own ({first}): put the tokenizer files of "
            "its language model beside the weights."
        ) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.convert_tokens_to_ids(IMAGE) in (None, tokenizer.unk_token_id):
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    return tokenizer
