"""What the coordinator computes at the end: secrets from shares, and the masks that are left in the sum."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from privacy.secagg import shamir
from umbel.errors import RoundAborted

_RETRIES = 16


def recover(
    revealed: Mapping[int, Mapping[int, bytes]],
    threshold: int,
    valid: Callable[[int, bytes], bool],
    what: str,
) -> dict[int, bytes]:
    """One secret for each owner, each checked with ``valid``.

    Owners whose shares come from the same holders are recovered in one batch. Where the first ``threshold``
    shares give a wrong secret (a holder lied), a few other subsets are tried.

    Args:
        revealed: by owner: share by evaluation point.
        threshold: shares needed.
        valid: whether a candidate is the secret that the owner committed to.
        what: noun for the message.

    Raises:
        RoundAborted: too few shares of an owner, or no subset gives its secret.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for owner, shares in revealed.items():
        if len(shares) < threshold:
            raise RoundAborted(
                f"Only {len(shares)} of {threshold} shares of the {what} of client {owner} arrived: repeat the round."
            )
        groups.setdefault(tuple(sorted(shares)[:threshold]), []).append(owner)
    found: dict[int, bytes] = {}
    for points, owners in groups.items():
        secrets = shamir.combine([[revealed[owner][point] for point in points] for owner in owners], points)
        for owner, secret in zip(owners, secrets, strict=True):
            if secret is None or not valid(owner, secret):
                secret = _other_subsets(revealed[owner], threshold, lambda s, owner=owner: valid(owner, s))  # type: ignore[misc]
            if secret is None:
                raise RoundAborted(
                    f"The shares of the {what} of client {owner} do not give what it committed to: repeat the round "
                    "without the clients that lie."
                )
            found[owner] = secret
    return found


def _other_subsets(shares: Mapping[int, bytes], threshold: int, valid: Callable[[bytes], bool]) -> bytes | None:
    points: Sequence[int] = sorted(shares)
    if len(points) == threshold:
        return None
    chooser = random.Random(0)  # noqa: S311 - which subset is tried is no secret
    for _ in range(_RETRIES):
        chosen = sorted(chooser.sample(points, threshold))
        secret = shamir.combine([[shares[point] for point in chosen]], chosen)[0]
        if secret is not None and valid(secret):
            return secret
    return None
