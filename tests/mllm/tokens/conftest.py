"""Tiny composed models of every language model, with attention that tells its tokens apart."""

import copy

import pytest
import torch

from mllm.modeling import ComposedForConditionalGeneration
from mllm.testing import tiny_composed


def made(language, **options):
    """A model of three layers and its processor; ``options`` are of the language model's configuration.

    As new, queries and keys are so small that every token would get the same weight, and biases are zero.
    """
    tiny = tiny_composed("siglip", "mlp", language, layers=3)
    config = copy.deepcopy(tiny.model.config)
    for name, value in options.items():
        setattr(config.text_config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ComposedForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.language_model.named_parameters():
        if ".self_attn." in name:
            own = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(parameter.data + own * (0.5 if parameter.ndim == 1 else 0.2))
    return model, tiny


@pytest.fixture(scope="session")
def composed():
    """``composed(language, **options)``: model and tiny parts, a fresh copy each time."""
    kept = {}

    def get(language, **options):
        key = (language, repr(sorted(options.items())))
        if key not in kept:
            kept[key] = made(language, **options)
        return copy.deepcopy(kept[key][0]), kept[key][1]

    return get
