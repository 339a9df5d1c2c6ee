"""Partitioners: how one pool of examples is divided among clients.

All of them work on *groups*: the examples that share an image. A group is never split, so that no image
lies at two clients; the natural partition is the exception, since there the data itself names the owner.
Each result is a list of ascending int64 index arrays, one a client: disjoint, together the whole pool.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from umbel.errors import DataError

Indices = npt.NDArray[np.int64]


def group_by_image(images: Sequence[Sequence[str]]) -> Indices:
    """Numbers the connected components of "shares an image with", in order of first appearance.

    Args:
        images: the image names of each example; an example without images is a group of its own.

    Returns:
        int64 [n]: the group of each example, 0 .. groups - 1.
    """
    parent = list(range(len(images)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for i, names in enumerate(images):
        for name in names:
            a, b = find(first.setdefault(name, i)), find(i)
            parent[max(a, b)] = min(a, b)
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(find(i), len(numbers)) for i in range(len(images))], dtype=np.int64)


def iid(groups: Indices, *, clients: int, seed: int, minimum: int) -> list[Indices]:
    """Shuffles the groups and gives each to the client that has the fewest examples so far.

    Raises:
        DataError: some client would stay below ``minimum`` examples.
    """
    sizes = _sizes(groups, clients, minimum)
    owner = np.empty(len(sizes), dtype=np.int64)
    held = np.zeros(clients, dtype=np.int64)
    for group in np.random.default_rng(seed).permutation(len(sizes)):
        owner[group] = int(held.argmin())
        held[owner[group]] += sizes[group]
    return _finish(groups, sizes, owner, clients, minimum, seed)


def dirichlet(
    groups: Indices, labels: Sequence[str], *, clients: int, seed: int, minimum: int, alpha: float
) -> list[Indices]:
    """Splits each class among the clients in proportions drawn from Dirichlet(alpha) (Hsu et al. 2019,
    arXiv 1909.06335; the per-class form of Yurochkin et al. 2019, arXiv 1905.12022).

    Clients that fall below ``minimum`` are then filled up with single groups of the largest ones.

    Args:
        groups: int64 [n], the group of each example.
        labels: the class of each group.
        alpha: concentration; small is more skewed, large approaches equal shares.

    Raises:
        DataError: ``alpha`` is not positive and finite, or the minimum cannot be reached.
    """
    if not (np.isfinite(alpha) and alpha > 0):
        raise DataError(f"The Dirichlet concentration is {alpha}, expected a positive number: set task.alpha.")
    sizes = _sizes(groups, clients, minimum)
    rng = np.random.default_rng(seed)
    owner = np.empty(len(sizes), dtype=np.int64)
    by_label = np.asarray(labels, dtype=str)
    for label in np.unique(by_label):
        members = rng.permutation(np.flatnonzero(by_label == label))
        # Gamma variates with a tiny shape can all underflow to 0; log-space keeps their proportions.
        log_share = np.log(rng.gamma(alpha + 1.0, size=clients)) + np.log1p(-rng.random(clients)) / alpha
        share = np.exp(log_share - log_share.max())
        cuts = np.cumsum(share / share.sum())
        middle = (np.cumsum(sizes[members]) - sizes[members] / 2) / sizes[members].sum()
        owner[members] = np.minimum(np.searchsorted(cuts, middle, side="left"), clients - 1)
    return _finish(groups, sizes, owner, clients, minimum, seed)


def by_label(groups: Indices, labels: Sequence[str], *, clients: int, seed: int, minimum: int) -> list[Indices]:
    """Sorts the groups by label and cuts the row into parts of nearly equal size (McMahan et al. 2017, section 3):
    a client sees few labels.

    Raises:
        DataError: some client would stay below ``minimum`` examples.
    """
    sizes = _sizes(groups, clients, minimum)
    rng = np.random.default_rng(seed)
    names, codes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    rank = rng.permutation(len(names))
    order = rng.permutation(len(sizes))
    order = order[np.argsort(rank[codes[order]], kind="stable")]
    middle = np.cumsum(sizes[order]) - sizes[order] / 2
    owner = np.empty(len(sizes), dtype=np.int64)
    owner[order] = np.minimum((middle * clients / sizes.sum()).astype(np.int64), clients - 1)
    return _finish(groups, sizes, owner, clients, minimum, seed)


def natural(owners: Sequence[str], clients: int, *, minimum: int) -> list[Indices]:
    """One client for each owner that the data names, in the order of their names.

    Raises:
        DataError: there are not exactly ``clients`` owners, or one has fewer than ``minimum`` examples.
    """
    names, codes = np.unique(np.asarray(owners, dtype=str), return_inverse=True)
    if len(names) != clients:
        raise DataError(
            f"The data names {len(names)} owners but {clients} clients are asked for: set federation.clients to "
            f"{len(names)} or choose another partition."
        )
    counts = np.bincount(codes, minlength=clients)
    if counts.size and counts.min() < minimum:
        raise DataError(
            f"Owner {str(names[counts.argmin()])!r} has {counts.min()} examples, expected at least {minimum}: "
            "lower task.minimum or add data."
        )
    return [np.flatnonzero(codes == client).astype(np.int64) for client in range(clients)]


def _sizes(groups: Indices, clients: int, minimum: int) -> npt.NDArray[np.int64]:
    if clients < 1:
        raise DataError(f"The data cannot be divided among {clients} clients: use at least one.")
    if len(groups) < clients * minimum:
        raise DataError(
            f"{len(groups)} examples cannot give {clients} clients at least {minimum} each: lower task.minimum or "
            "federation.clients, or add data."
        )
    return np.bincount(groups).astype(np.int64)


def _finish(
    groups: Indices, sizes: npt.NDArray[np.int64], owner: Indices, clients: int, minimum: int, seed: int
) -> list[Indices]:
    """Fills clients below the minimum with single groups of the largest, then turns owners into indices."""
    held = np.bincount(owner, weights=sizes, minlength=clients).astype(np.int64)
    rng = np.random.default_rng([seed, 1])
    while (poorest := int(held.argmin())) >= 0 and held[poorest] < minimum:
        group = _spare(sizes, owner, held, minimum, rng)
        if group is None:
            raise DataError(
                f"A client would keep {held[poorest]} examples, expected at least {minimum}, because examples that "
                "share an image stay together: lower task.minimum or federation.clients."
            )
        held[owner[group]] -= sizes[group]
        owner[group] = poorest
        held[poorest] += sizes[group]
    holder = owner[groups]
    return [np.flatnonzero(holder == client).astype(np.int64) for client in range(clients)]


def _spare(
    sizes: npt.NDArray[np.int64], owner: Indices, held: npt.NDArray[np.int64], minimum: int, rng: np.random.Generator
) -> int | None:
    """A group that its holder can give away and stay at the minimum; the largest holder gives first."""
    for donor in np.argsort(-held, kind="stable"):
        able = np.flatnonzero((owner == donor) & (sizes <= held[donor] - minimum))
        if able.size:
            return int(rng.choice(able))
    return None
