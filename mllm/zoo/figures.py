"""Sizes of the zoo's systems, counted without their storage, and what a benchmark has shown of each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.initialization import no_init_weights

from mllm.language import language_for
from mllm.parts import linear_sites
from mllm.zoo.memory import BITS, Step, extended_memory, training_memory
from mllm.zoo.native import NATIVE
from mllm.zoo.system import System
from mllm.zoo.systems import SYSTEMS
from umbel.errors import ModelError

VERIFIED = Path(__file__).parent / "verified.json"
"""What ``python -m benchmarks.zoo --record`` wrote last."""
SIZES = Path(__file__).parent / "sizes.json"
"""What :func:`record_sizes` wrote last: counting a system takes seconds."""
RANK = 8
STEP = Step(examples=1, images=1, words=128)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of one system at full size, with an NF4 base and LoRA factors of rank 8 on its language model.

    Attributes:
        parameters: all of them, each once.
        quantized_bytes: of the base as stored; embeddings, norms and convolutions in 16 bits.
        adapter_bytes: that a client sends and gets each round, float32.
        tokens: image tokens of one image; None of families of transformers, like all that follows.
        image_size: pixels a side.
        training_bytes: a training step on one image and 128 words in float32, see :mod:`mllm.zoo.memory`.
        checkpointed_bytes: the same with gradient checkpointing.
    """

    parameters: int
    quantized_bytes: int
    adapter_bytes: int
    tokens: int | None = None
    image_size: int | None = None
    training_bytes: int | None = None
    checkpointed_bytes: int | None = None


def count(system: System, *, memory: bool = True) -> Sizes:
    """Counts a system and, if asked to, traces a training step (seconds to minutes); nothing of its size is held."""
    import torch

    from mllm.modeling import ComposedForConditionalGeneration

    config = system.config("full")
    with torch.device("meta"), no_init_weights():
        model = ComposedForConditionalGeneration(config)
        model.tie_weights()  # left out with the initialisation
    return _sizes(
        model,
        tokens=config.tokens_per_image,
        image_size=config.image_size,
        training_bytes=_traced(system, checkpointing=False) if memory else None,
        checkpointed_bytes=_traced(system, checkpointing=True) if memory else None,
    )


def count_native(name: str) -> Sizes:
    """Counts a family of transformers from its published configuration; its training step is not traced.

    Raises:
        ModelError: the family is not in the zoo.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    from mllm.zoo.native_configs import native_config

    config = native_config(name)
    with torch.device("meta"), no_init_weights():
        model = AutoModelForImageTextToText.from_config(config)
        model.tie_weights()  # left out with the initialisation
    return _sizes(model)


def _sizes(model: Any, **more: int | None) -> Sizes:
    sites = [site for site in linear_sites(model) if not site.exempt]
    packed = {id(site.module.weight) for site in sites if site.part != "projector"}
    parameters = {id(p): p for p in model.parameters()}
    stored = sum(p.numel() * (BITS["nf4"] if key in packed else 16.0) / 8 for key, p in parameters.items())
    trained = sum(RANK * (s.module.in_features + s.module.out_features) for s in sites if s.part == "language")
    return Sizes(
        parameters=sum(p.numel() for p in parameters.values()),
        quantized_bytes=round(stored),
        adapter_bytes=4 * trained,
        **more,
    )


def _traced(system: System, *, checkpointing: bool) -> int:
    config: Any = system.config("full")
    if not language_for(config.text_config).stateful:
        return training_memory(config, STEP, rank=RANK, checkpointing=checkpointing).total

    def shallow(layers: int) -> Any:
        made: Any = system.config("full")
        made.text_config.num_hidden_layers = layers
        return made

    depth = config.text_config.num_hidden_layers
    return extended_memory(shallow, depth, STEP, rank=RANK, checkpointing=checkpointing).total


def record_sizes(names: list[str] | None = None, *, memory: bool = True) -> None:
    """Counts systems and keeps the figures, each as soon as it is counted, so that a broken call goes on.

    Args:
        names: of systems and families; by default those whose figures are not there.
        memory: trace a training step of systems as well, which takes minutes.
    """
    from dataclasses import asdict

    wanted = "training_bytes" if memory else "parameters"
    have = _read(SIZES)
    missing = [name for name in SYSTEMS if wanted not in have.get(name, {})]
    missing += [name for name in NATIVE if name not in have]
    for name in names or missing:
        found = count_native(name) if name in NATIVE else count(SYSTEMS[name], memory=memory)
        made = {key: value for key, value in asdict(found).items() if value is not None}
        kept = _read(SIZES)
        kept[name] = kept.get(name, {}) | made
        SIZES.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n", encoding="utf-8")


def rows() -> list[dict[str, Any]]:
    """One dictionary a system, then one a family of transformers: what is counted, stated, and verified.

    ``verified`` holds ``dp``, ``secagg``, ``quantization`` and ``checkpoint``, each true, false, or None where the
    benchmark has not run or does not apply; ``lanes`` says whether many clients can share a batch.
    """
    sizes, shown = _read(SIZES), _read(VERIFIED)
    found: list[dict[str, Any]] = []
    for name, system in SYSTEMS.items():
        found.append(
            {
                "name": name,
                "title": system.title,
                "kind": "composed",
                "paper": system.paper,
                "towers": list(system.towers),
                "projector": system.projector["type"],
                "language": system.language,
                "weights": list(system.weights),
                "licence": system.licence or "not published",
                "note": system.note,
                **sizes.get(name, {}),
                "verified": verified(shown.get(name)),
            }
        )
    for name, family in NATIVE.items():
        found.append(
            {
                "name": name,
                "title": family.title,
                "kind": "native",
                "weights": [family.hub],
                "licence": family.licence,
                "parameters": round(family.parameters * 1e9),
                "tokens": family.tokens,
                "note": "" if family.processor else "Its tiny form has no processor: row maps are tested, no run is.",
                **sizes.get(name, {}),
                "verified": verified(shown.get(name)),
            }
        )
    return found


def published_bytes(name: str) -> int | None:
    """Bytes of the published weights, 16 bits each, of a family of transformers at full size; None of other names.

    Raises:
        ModelError: the name has an unknown size, or the record cannot be read.
    """
    from mllm.zoo.store import split_name

    parts = split_name(name)
    if parts is None or parts[0] not in NATIVE or parts[1] != "full":
        return None
    return 2 * int(_read(SIZES).get(parts[0], {}).get("parameters", NATIVE[parts[0]].parameters * 1e9))


def training_bytes(name: str) -> tuple[int, int | None] | None:
    """Bytes of a training step of the zoo's ``name`` at full size, and with gradient checkpointing, as recorded.

    None where the name is not in the zoo, asks for the tiny form, or was never counted. Nothing is fetched.

    Raises:
        ModelError: the name has an unknown size, or the record cannot be read.
    """
    from mllm.zoo.store import split_name

    parts = split_name(name)
    if parts is None or parts[1] != "full":
        return None
    found = _read(SIZES).get(parts[0], {})
    traced, checkpointed = found.get("training_bytes"), found.get("checkpointed_bytes")
    return None if traced is None else (int(traced), None if checkpointed is None else int(checkpointed))


def verified(row: dict[str, Any] | None) -> dict[str, bool | None]:
    """What a recorded row of the benchmark shows; None throughout when there is none."""
    keys = ("dp", "secagg", "quantization", "checkpoint", "lanes")
    if row is None:
        return dict.fromkeys(keys)
    private = row.get("sensitivity") is not None and row["sensitivity"] <= 1.0 and row.get("norms", 1.0) < 1e-3
    return {
        "dp": bool(row["round_ok"] and private),
        "secagg": bool(row["round_ok"] and row.get("secure")),
        "quantization": bool(row["round_ok"] and row["quantized"]),
        "checkpoint": row["checkpoint_ok"],
        "lanes": row.get("lanes"),
    }


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ModelError(f"{path} cannot be read: reinstall umbel.") from None
    return body
