import pytest

from umbel.config import RunConfig
from umbel.config.model import quantization_of_parts
from umbel.errors import ConfigError

PLAIN = {"privacy.unit": "none", "strategy.name": "fedit"}


@pytest.mark.parametrize(
    ("flat", "sentence"),
    [
        ({"lora.method": "dora"}, "set lora.method to lora, or privacy.unit"),
        ({"lora.method": "dora", "privacy.unit": "none", "strategy.name": "fedsvd"}, "choose one of fedit"),
        ({"lora.method": "ia3"}, "set strategy.name to fedit"),
        ({"lora.method": "prompt", "strategy.name": "fedit", "privacy.engine": "opacus"}, "privacy.engine to auto"),
        ({**PLAIN, "lora.method": "prompt", "lora.targets": "language,vision"}, "has no target layers"),
        ({**PLAIN, "lora.method": "prefix", "model.gradient-checkpointing": True}, "add the prefix twice"),
        ({**PLAIN, "lora.method": "prompt", "model.tokens": "fastv"}, "use pool, tome or prumerge"),
        ({**PLAIN, "lora.method": "adapter", "strategy.ranks": "mixed"}, "set strategy.ranks to same"),
        ({**PLAIN, "lora.method": "adapter", "lora.dropout": 0.1}, "set it to 0"),
        ({**PLAIN, "lora.method": "ia3", "lora.quantization-aware": "int8"}, "set it to none"),
        ({"train.distill": "teacher"}, "name a teacher"),
        ({"train.teacher": "demo"}, "name a teacher"),
        ({"train.distill": "global", "federation.lanes": 4}, "set federation.lanes to 1"),
        ({"lora.quantization-aware": "int8", "federation.lanes": 4}, "set federation.lanes to 1"),
        ({"model.tokens": "withdraw", "federation.lanes": 4}, "set federation.lanes to 1"),
        ({"model.prune": "heads"}, "set both"),
        ({"model.prune-share": 0.5}, "set both"),
        ({"model.calibration": "balanced", "model.quantization": "int8"}, "set model.quantization to nf4"),
        ({"model.calibration": "balanced", "task.name": "folder", "task.data": "x"}, "needs public examples"),
        ({"model.feature-cache": "memory", "lora.targets": "vision"}, "set model.feature-cache to none"),
        ({"model.quantization-parts": "vision:int2"}, "is no part:backend"),
        ({"model.quantization-parts": "vision:int8,vision:nf4"}, "is no part:backend"),
        ({"model.quantization-parts": "tower:int8"}, "is no part:backend"),
        ({"model.tokens": "sieve"}, "model.tokens"),
        ({"model.token-share": 0.0}, "model.token-share"),
        ({"model.prune-share": 1.0, "model.prune": "heads"}, "model.prune-share"),
    ],
)
def test_what_cannot_be_combined_is_refused_in_one_sentence(flat, sentence):
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_flat(flat)
    message = str(caught.value)
    assert sentence in message
    assert "\n" not in message
    assert message.endswith(".")


@pytest.mark.parametrize(
    "flat",
    [
        {**PLAIN, "lora.method": "dora"},
        {"strategy.name": "fedit", "lora.method": "prompt"},
        {"strategy.name": "fedit", "lora.method": "adapter", "lora.targets": "vision,projector"},
        {"privacy.unit": "client", "privacy.sampler": "full", "privacy.place": "update", "lora.method": "dora"},
        {"train.distill": "global"},
        {"model.prune": "heads", "model.prune-share": 0.5, "model.calibration": "balanced"},
        {"model.quantization": "int8", "model.quantization-parts": "language:nf4", "model.calibration": "balanced"},
        {"model.feature-cache": "disk", "model.tokens": "tome", "federation.lanes": 8},
    ],
)
def test_what_can_be_is_not(flat):
    config = RunConfig.from_flat(flat)
    assert RunConfig.from_flat(config.to_flat()) == config


def test_parts_are_read_as_written():
    assert quantization_of_parts("same") == {}
    assert quantization_of_parts("vision: int8, projector:none") == {"vision": "int8", "projector": "none"}
