"""ComposedConfig: a vision encoder, a projector and a language model."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from mllm.encoders import encoder_for
from mllm.encoders.resnet import ResNetConfig
from mllm.language import language_for
from mllm.projectors import projector_for
from umbel.errors import ModelError


class ComposedConfig(PreTrainedConfig):  # type: ignore[misc]
    """Configuration of :class:`mllm.modeling.ComposedForConditionalGeneration`.

    Attributes:
        vision_config: configuration of a registered encoder (:data:`mllm.encoders.ENCODERS`).
        text_config: configuration of a registered language model (:data:`mllm.language.LANGUAGES`).
        projector: ``{"type": name, option: value, ...}`` of :data:`mllm.projectors.PROJECTORS`.
        image_token_id: the placeholder that image tokens replace; inside the vocabulary.
        vision_feature_layer: hidden state of the encoder that is read; -1 is its output.
        tie_word_embeddings: taken from ``text_config``.

    Raises:
        ModelError: an unknown part, an impossible projector, or a placeholder outside the vocabulary.
    """

    model_type = "umbel_vlm"
    sub_configs_defaults = {  # noqa: RUF012 - the form that transformers reads
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type=ResNetConfig.model_type),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    projector: dict[str, Any] | None = None
    image_token_id: int = 0
    vision_feature_layer: int = -1
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        vision: Any = self.vision_config
        text: Any = self.text_config
        encoder = encoder_for(vision)
        encoder.check(vision, self.vision_feature_layer)
        language_for(text).check(text)
        self.projector = dict(self.projector or {"type": "mlp"})
        kind = projector_for(self.projector)
        self.projector = {"type": kind.name, **kind.options(self.projector)}
        kind.tokens(self.projector, encoder.grid(vision))
        if not 0 <= self.image_token_id < text.vocab_size:
            raise ModelError(
                f"image_token_id {self.image_token_id} lies outside the vocabulary of {text.vocab_size}: "
                "give the placeholder a row of the embedding."
            )
        # Tying belongs to the language model; the outer flag only tells transformers' loader about it.
        self.tie_word_embeddings = bool(getattr(text, "tie_word_embeddings", False))

    @property
    def tokens_per_image(self) -> int:
        """Image tokens that stand for one image in the language model's sequence."""
        assert self.projector is not None
        grid = encoder_for(self.vision_config).grid(self.vision_config)
        return projector_for(self.projector).tokens(self.projector, grid)

    @property
    def image_size(self) -> int:
        """Pixels a side that the encoder expects."""
        return encoder_for(self.vision_config).size(self.vision_config)

    @property
    def rows_per_image(self) -> tuple[int, ...]:
        """How many rows an image makes in linear layers of tower and projector (tiles, windows): all that occur."""
        assert self.projector is not None
        encoder = encoder_for(self.vision_config)
        projector = projector_for(self.projector).rows(self.projector, encoder.grid(self.vision_config))
        return tuple(sorted({*encoder.rows(self.vision_config), *projector}))

    @property
    def layers_used(self) -> dict[str, int]:
        """How many layers of each vision tower are used, by its path inside ``vision_tower``."""
        return encoder_for(self.vision_config).depth(self.vision_config, self.vision_feature_layer)
