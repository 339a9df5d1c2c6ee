"""Side terms in a model: a forward hook on each corrected LoRA layer adds side.B (side.A x) to its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from umbel.adapter import AdapterSpec
from umbel.errors import AdapterError
from umbel.side import SideTerm


class SideHooks:
    """The side terms of one PEFT model. They are frozen: gradients pass through them, to the layers before.

    ``model.disable_adapter()`` switches them off with the factors, so that it still shows the plain base.
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def replace(self, model: Any, spec: AdapterSpec, terms: Mapping[str, SideTerm]) -> None:
        """Takes the present terms off and puts ``terms`` on; {} leaves none.

        Args:
            model: the PEFT model.
            spec: of its factors; names the modules and their shapes.
            terms: by module.

        Raises:
            AdapterError: a term does not fit its layer or belongs to none; the present terms then stay.
        """
        pairs = {pair.module: pair for pair in spec.pairs}
        for module, term in terms.items():
            if module not in pairs:
                raise AdapterError(f"A side term belongs to {module}, which has no LoRA factors: use the same targets.")
            term.check(module, pairs[module].b.shape[0], pairs[module].a.shape[1])
        self.clear()
        for module, term in terms.items():
            layer = model.get_submodule(module)
            device = next(layer.lora_A.parameters()).device
            # Copied: an array from the wire or a checkpoint may be read-only or go away.
            a, b = (torch.tensor(factor, dtype=torch.float32, device=device) for factor in (term.a, term.b))
            self._handles.append(layer.register_forward_hook(_adds(a, b)))

    def clear(self) -> None:
        """Takes all terms off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _adds(a: torch.Tensor, b: torch.Tensor) -> Callable[[Any, tuple[Any, ...], torch.Tensor], torch.Tensor]:
    def hook(layer: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        if layer.disable_adapters:
            return output
        return output + functional.linear(functional.linear(inputs[0].to(a.dtype), a), b).to(output.dtype)

    return hook
