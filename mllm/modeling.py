"""ComposedForConditionalGeneration: vision tower, projector and language model as one transformers model.

Image tokens take the place of placeholder embeddings (LLaVA, Liu et al. 2023). The language model is a
whole causal LM of transformers, head included, so tied weights and caches are its own business.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from mllm.config import ComposedConfig
from mllm.encoders import encoder_for
from mllm.language import language_for
from mllm.projectors import projector_for
from umbel.errors import ModelError


class ComposedForConditionalGeneration(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Text and images to text.

    Attributes:
        vision_tower: the encoder, a transformers model.
        projector: image tokens to the language model's width.
        language_model: a causal LM of transformers.
    """

    config_class = ComposedConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: ComposedConfig) -> None:
        super().__init__(config)
        vision: Any = config.vision_config
        text: Any = config.text_config
        assert config.projector is not None
        self._encoder = encoder_for(vision)
        self._language = language = language_for(text)
        self._image_scale = language.image_scale(text)
        self.vision_tower = self._encoder.tower(vision)
        self.projector = projector_for(config.projector).build(
            config.projector, self._encoder.grid(vision), self._encoder.widths(vision), language.width(text)
        )
        self.language_model = language.build(text)
        self._is_stateful = language.stateful
        self.post_init()
        self.generation_config.eos_token_id = text.eos_token_id
        self.generation_config.pad_token_id = text.pad_token_id
        # A placeholder stands for an image that was given, so it is never a thing to say.
        self.generation_config.suppress_tokens = [config.image_token_id]

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token embeddings."""
        embeddings: nn.Module = self.language_model.get_input_embeddings()  # type: ignore[operator]
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the language model's token embeddings."""
        self.language_model.set_input_embeddings(value)  # type: ignore[operator]

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        head: nn.Module = self.language_model.get_output_embeddings()  # type: ignore[operator]
        return head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replaces the language model's head."""
        self.language_model.set_output_embeddings(new_embeddings)  # type: ignore[operator]

    def get_decoder(self) -> nn.Module:
        """The language model."""
        return self.language_model

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Projected image tokens [images, tokens, text width] of ``pixel_values`` [images, 3, H, W].

        Raises:
            ModelError: the images have another shape than the encoder expects.
        """
        size = self.config.image_size
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (3, size, size):
            raise ModelError(
                f"pixel_values have shape {tuple(pixel_values.shape)}, expected (images, 3, {size}, {size}): "
                "prepare them with the model's own processor."
            )
        dtype = next(p.dtype for p in self.vision_tower.parameters() if p.is_floating_point())
        tokens = self._encoder.features(self.vision_tower, pixel_values.to(dtype), self.config.vision_feature_layer)
        features: torch.Tensor = self.projector(tokens)
        return features

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """One forward pass.

        Args:
            input_ids: [n, T], with ``image_token_id`` wherever an image token goes.
            attention_mask: [n, T], 1 for tokens and 0 for padding, on either side.
            pixel_values: [images, 3, H, W], all images of the batch in reading order; None or no rows if none.
            labels: [n, T], -100 where nothing is learned; gives the batch's mean loss over its tokens. That
                mean couples the examples: private training uses :func:`mllm.loss.per_example_loss`.
            position_ids, past_key_values, inputs_embeds, use_cache, logits_to_keep: as in transformers.
            kwargs: handed to the language model.

        Raises:
            ModelError: placeholders and image tokens differ in number, or both or neither of ``input_ids``
                and ``inputs_embeds`` are given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ModelError("The model needs either input_ids or inputs_embeds: give exactly one of the two.")
        if input_ids is not None:
            inputs_embeds = self._embed(input_ids, pixel_values, past_key_values)
        assert inputs_embeds is not None
        return self._language.run(
            self.language_model,
            inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def _embed(self, input_ids: torch.Tensor, pixels: torch.Tensor | None, past: Any) -> torch.Tensor:
        embeds: torch.Tensor = self.get_input_embeddings()(input_ids)
        places = input_ids == self.config.image_token_id
        if pixels is None or pixels.shape[0] == 0:
            first = past is None or past.get_seq_length() == 0
            if first and bool(places.any()):
                raise ModelError(
                    f"The text holds {int(places.sum())} image placeholders but no pixel_values were given: pass the "
                    "images, or leave the placeholders out."
                )
            return embeds
        features = self.get_image_features(pixels)
        expected, found = features.shape[0] * features.shape[1], int(places.sum())
        if expected != found:
            raise ModelError(
                f"The text holds {found} image placeholders but {features.shape[0]} images give {expected} image "
                f"tokens: each image needs {features.shape[1]} placeholders, as the processor writes them."
            )
        if self._image_scale != 1.0:
            features = features * self._image_scale
        return embeds.masked_scatter(places.unsqueeze(-1), features.to(embeds.dtype))

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        done = super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        if model_kwargs.get("past_key_values") is not None:
            own = self._language.cache(self.config.text_config)
            if own is not None:
                model_kwargs["past_key_values"] = own
        return done

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **model_kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        # Beams and several samples repeat an example: its images must be repeated together, not one by one.
        pixels = model_kwargs.pop("pixel_values", None)
        counts: list[int] = []
        if pixels is not None and input_ids is not None:
            placeholders = (input_ids == self.config.image_token_id).sum(1)
            # As many as there are for each image: a token reduction leaves fewer than config.tokens_per_image.
            counts = (placeholders // max(1, int(placeholders.sum()) // max(1, pixels.shape[0]))).tolist()
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        if pixels is not None:
            if expand_size > 1 and sum(counts) == pixels.shape[0]:
                pixels = torch.cat([part for part in pixels.split(counts) for _ in range(expand_size)])
            model_kwargs["pixel_values"] = pixels
        return input_ids, model_kwargs
