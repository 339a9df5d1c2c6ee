"""The strategies by name."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from strategies.base import AdapterStrategy
from strategies.fed_sb import FedSB
from strategies.fedask import FedASK
from strategies.feddpa import FedDPA
from strategies.fedex_lora import FedExLora
from strategies.fedit import FedIT
from strategies.fedsa_lora import FedSALora
from strategies.fedsvd import FedSVD
from strategies.ffa_lora import FFALora
from strategies.flasc import Flasc
from strategies.flexlora import FlexLora
from strategies.flora import FLora
from strategies.hetlora import HetLora
from strategies.lora_fair import LoraFair
from strategies.rolora import RoLora
from umbel.errors import StrategyError

STRATEGIES: dict[str, type[AdapterStrategy]] = {
    cls.name: cls
    for cls in (
        FedIT,
        FFALora,
        RoLora,
        FedSALora,
        FedSVD,
        FedExLora,
        FLora,
        FlexLora,
        HetLora,
        LoraFair,
        FedSB,
        FedASK,
        Flasc,
        FedDPA,
    )
}


def make_strategy(name: str, **options: Any) -> AdapterStrategy:
    """The strategy called ``name``; ``options`` go to its constructor.

    Raises:
        StrategyError: the name, or an option of it, is unknown.
    """
    if name not in STRATEGIES:
        close = difflib.get_close_matches(name, STRATEGIES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(STRATEGIES))}."
        raise StrategyError(f"Strategy {name!r} is unknown: {hint}")
    known = set(inspect.signature(STRATEGIES[name]).parameters)
    unknown = sorted(set(options) - known)
    if unknown:
        raise StrategyError(
            f"Strategy {name!r} has no option {unknown[0]!r}: its options are {', '.join(sorted(known)) or 'none'}."
        )
    return STRATEGIES[name](**options)
