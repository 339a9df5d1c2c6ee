"""Keeps what libraries say about kernels that are not needed here out of the user's terminal."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_NOISY = ("torchao", "torch.utils._pytree", "bitsandbytes", "transformers")


@contextmanager
def quiet() -> Iterator[None]:
    """Only errors of torchao, bitsandbytes and transformers are logged inside; levels are put back after."""
    before = {name: logging.getLogger(name).level for name in _NOISY}
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """transformers shows no progress bars inside: loading a base is one step of somebody's display."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
