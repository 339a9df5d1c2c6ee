"""check_models: whether the models that a run loads here are those that the policy names by hash."""

from __future__ import annotations

from collections.abc import Callable

from client.agent.policy import SitePolicy
from mllm.checkpoint import resolve
from mllm.checkpoint_hash import checkpoint_hash
from mllm.warm import warm_model
from umbel.config import RunConfig
from umbel.errors import ModelError


def check_models(policy: SitePolicy, config: RunConfig, view: RunConfig) -> None:
    """Compares the base and, where there is one, the teacher.

    Args:
        policy: of the site.
        config: the run's options, with the names that the policy knows.
        view: the same with the site's own paths.

    Raises:
        ModelError: a model is another than the policy names, or cannot be loaded.
    """
    _compare(policy, config.model.reference, lambda: warm_model(view).base.hash)
    if config.train.teacher != "none":
        # By its files: the teacher itself is loaded when somebody trains, which may be never.
        _compare(policy, config.train.teacher, lambda: checkpoint_hash(resolve(view.train.teacher)))


def _compare(policy: SitePolicy, name: str, found: Callable[[], str]) -> None:
    wanted = policy.model(name)
    if wanted is not None and wanted.hash and found() != wanted.hash:
        raise ModelError(
            f"The model {wanted.name!r} at this site is not the one that its policy names by hash: put the right files "
            "there."
        )
