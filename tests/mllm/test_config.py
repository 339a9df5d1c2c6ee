import pytest
from transformers import BertConfig, LlamaConfig, SiglipVisionConfig

from mllm.config import ComposedConfig
from mllm.encoders.resnet import ResNetConfig
from mllm.testing import tiny_composed
from umbel.errors import ModelError

TEXT = {"vocab_size": 20, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}


def make(**changes):
    options = {"vision_config": ResNetConfig(), "text_config": LlamaConfig(**TEXT), "image_token_id": 4} | changes
    return ComposedConfig(**options)


def test_tokens_per_image_and_round_trip(tmp_path):
    assert make().tokens_per_image == 16
    assert make(projector={"type": "pixel-shuffle"}).tokens_per_image == 4
    assert make(projector={"type": "pixel-shuffle", "factor": 4}).tokens_per_image == 1
    config = make(projector={"type": "mlp", "depth": 3})
    config.save_pretrained(tmp_path)
    again = ComposedConfig.from_pretrained(tmp_path)
    assert again.projector == {"type": "mlp", "depth": 3, "hidden": 0}
    assert isinstance(again.vision_config, ResNetConfig)
    assert again.vision_config.channels == config.vision_config.channels


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"projector": {"type": "conv"}}, "choose one of mlp, pixel-shuffle"),
        ({"projector": {"type": "mlp", "deep": 2}}, "its options are depth=2"),
        ({"projector": {"type": "mlp", "depth": "2"}}, "its options are depth=2"),
        ({"projector": {"type": "pixel-shuffle", "factor": 3}}, "does not divide the image grid 4 x 4"),
        ({"image_token_id": 20}, "outside the vocabulary of 20"),
        ({"text_config": BertConfig()}, "choose one of llama, qwen2"),
        ({"vision_config": LlamaConfig()}, "choose one of umbel_resnet"),
    ],
)
def test_impossible_configurations(changes, words):
    with pytest.raises(ModelError, match=words):
        make(**changes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": 60}, "choose a multiple"),
        ({"channels": [12]}, "multiples of groups"),
        ({"channels": []}, "at least one stage"),
        ({"blocks": 0}, "positive numbers"),
    ],
)
def test_impossible_resnets(options, words):
    with pytest.raises(ModelError, match=words):
        ResNetConfig(**options)


def test_a_projector_of_no_depth():
    from mllm.modeling import ComposedForConditionalGeneration

    with pytest.raises(ModelError, match="at least 1"):
        ComposedForConditionalGeneration(make(projector={"type": "mlp", "depth": 0}))


def test_a_feature_layer_that_does_not_exist():
    for encoder in ("siglip", "resnet"):
        tiny = tiny_composed(encoder)
        tiny.model.config.vision_feature_layer = 9
        with pytest.raises(ModelError, match="does not exist"):
            tiny.model(**tiny.batch([1]).inputs)


def test_the_last_but_one_layer_can_be_read():
    tiny = tiny_composed("clip")
    inputs = tiny.batch([1]).inputs
    last = tiny.model(**inputs).logits
    tiny.model.config.vision_feature_layer = -2
    assert (tiny.model(**inputs).logits - last).abs().max() > 1e-5


def test_siglip_drops_its_pooling_head():
    vision = SiglipVisionConfig(hidden_size=48, image_size=32, patch_size=8, num_hidden_layers=1)
    config = make(vision_config=vision)
    from mllm.modeling import ComposedForConditionalGeneration

    model = ComposedForConditionalGeneration(config)
    assert not any(".head." in name for name, _ in model.named_parameters())
