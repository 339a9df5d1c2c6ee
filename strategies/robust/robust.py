"""A linear method whose mean is replaced by a robust rule, over clients or over secure groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from strategies.base import AdapterStrategy, StrategyState, Upload
from strategies.robust.coordinate import CoordinateMedian, TrimmedMean
from strategies.robust.geometric import GeometricMedian, NormBound
from strategies.robust.krum import Bulyan, Krum, MultiKrum
from strategies.robust.rule import Rule
from strategies.wrapper import LinearWrapper
from umbel.adapter import AdapterSpec, Vector
from umbel.errors import StrategyError

RULES: dict[str, type[Rule]] = {
    rule.name: rule for rule in (CoordinateMedian, TrimmedMean, Krum, MultiKrum, Bulyan, GeometricMedian, NormBound)
}


class Robust(LinearWrapper):
    """A linear method with a robust rule in place of the weighted mean.

    With ``groups`` = 0 the rule reads every upload, so secure aggregation is out. With groups, each round's cohort is
    divided at random (:func:`assign_groups`), every group is summed securely, and ``step_individual`` gets one
    Upload a group: its mean, its weight, rank 0. A group with one corrupt client counts as corrupt, so f corrupt
    clients need more groups than the rule's least(f).

    Args:
        inner: a linear method with a single pass.
        rule: over clients, or over groups; its corrupt share then counts groups.
        groups: number of groups; 0 for none.
    """

    def __init__(self, inner: AdapterStrategy, rule: Rule, groups: int = 0) -> None:
        if groups < 0 or groups == 1:
            raise StrategyError(f"{groups} groups cannot be compared with each other: use 0 for none, or at least 3.")
        super().__init__(inner, rule.name + (f"-{groups}-groups" if groups else ""), linear=False)
        if groups:
            rule.check(groups)
        self.rule, self.groups = rule, groups

    def step(self, spec: AdapterSpec, mean: Vector, state: StrategyState, round_number: int) -> StrategyState:
        """Always raises StrategyError: the rule compares uploads with each other."""
        raise StrategyError(
            f"The rule {self.rule.name!r} compares single uploads, which a sum hides: switch secure aggregation off "
            "or set robust groups."
        )

    def step_individual(
        self, spec: AdapterSpec, uploads: Sequence[Upload], state: StrategyState, round_number: int
    ) -> StrategyState:
        """The rule's aggregate, handed to ``inner`` as its mean."""
        return self.inner.step(spec, self.rule.combine(uploads), state, round_number)


def assign_groups(clients: Sequence[str], groups: int, seed: Sequence[int]) -> list[list[str]]:
    """Divides clients at random into groups whose sizes differ by at most one.

    Secure aggregation hides a client only within its group: every group must hold at least its minimum cohort.

    Args:
        clients: names; their order does not matter.
        groups: at least 1 and at most the number of clients.
        seed: integers, for example run seed and round; corrupt clients must not know them before they are named.

    Raises:
        StrategyError: more groups than clients, or a client named twice.
    """
    if not 1 <= groups <= len(clients) or len(set(clients)) != len(clients):
        raise StrategyError(
            f"{len(clients)} clients cannot form {groups} groups without repeats: lower the groups or raise the cohort."
        )
    names = sorted(clients)
    order = np.random.default_rng(list(seed)).permutation(len(names))
    return [sorted(names[i] for i in order[g::groups]) for g in range(groups)]
