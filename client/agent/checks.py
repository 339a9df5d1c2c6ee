"""checks: whether a site's folder is fit to be served, one line a thing, failing with the first that is not."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from client.agent.audit_log import AuditLog
from client.agent.books import anchor, last_anchor, require_log
from client.agent.house import House
from client.agent.policy import Data
from privacy.secagg import Identity
from privacy.secagg.pinned import ROSTER
from umbel.config import RunConfig
from umbel.errors import DataError, SiteError
from umbel.tls import load_identity


def checks(folder: Path, *, load: bool = True) -> Iterator[str]:
    """Looks at everything that ``serve`` needs.

    Args:
        folder: of the site.
        load: also load every model (which prints its hash) and read every data set.

    Raises:
        UmbelError: the first thing that is wrong, in its sentence.
    """
    house = House.open(folder)
    house.require_access()
    policy = house.policy
    yield f"policy: site {policy.name}, {len(policy.coordinators)} coordinators, {len(policy.data)} data sets"
    identity = house.identity()
    house.secret("probe")
    yield f"keys: private to this user; public key {identity.public.hex()}"
    if policy.listen.address:
        found = load_identity(house.place(policy.listen.tls), "server")
        left = (found.peer.not_after - datetime.now(UTC)).days
        yield f"certificate: {found.peer.name}, {left} days left"
    if not policy.coordinators:
        yield "coordinators: none, so nobody can ask for anything"
    if any(c.socket for c in policy.coordinators) or policy.listen.address:
        yield f"roster: {_roster(house)}"
    yield from _books(house, identity)
    if load:
        yield from _loaded(house)
    now = "open" if policy.hours.admit(datetime.now(UTC)) else "closed"
    yield f"hours: {now} now"


def _books(house: House, identity: Identity) -> Iterator[str]:
    # The log is verified before anything that it says of the ledger is believed.
    logged = house.log.exists()
    if logged:
        yield f"log: {AuditLog(house.log, identity).head.number} lines, unchanged"
    require_log(house.log, house.ledger)
    if not logged:
        yield "log and ledger: begin with the first start"
        return
    known = last_anchor(house.log)
    if known.lines or house.ledger.exists():
        anchor(house.ledger, known)
    yield "ledger: goes on from what the log knows"


def _roster(house: House) -> str:
    if not (house.keys / ROSTER).exists():
        if house.policy.runs.secure_aggregation:
            raise SiteError(
                f"{house.keys / ROSTER} is missing and secure aggregation is required: put authority.pub, roster.json "
                "and roster.sig there, as the federation gave them to you."
            )
        return "none, so no secure aggregation"
    return f"{len(house.roster())} sites"


def no_gpu(house: House) -> str:
    """What is to be said where site.toml allows a GPU and this process has none; "" otherwise."""
    if not house.policy.limits.gpu:
        return ""
    import torch

    if torch.cuda.is_available():
        return ""
    return (
        "site.toml allows a GPU (limits.gpu) and torch finds none: training uses the processor; look at the driver and "
        "at CUDA_VISIBLE_DEVICES, or set gpu = false."
    )


def _loaded(house: House) -> Iterator[str]:
    from client.agent.server import prepare_machine
    from mllm.load import load_base

    prepare_machine(house)
    if missing := no_gpu(house):
        yield f"warning: {missing}"
    for model in house.policy.models:
        base = load_base(str(house.place(model.path)) if model.path else model.name)
        if model.hash and base.hash != model.hash:
            raise SiteError(
                f"The model {model.name!r} has the hash {base.hash}, and site.toml names another: put the right files "
                "there, or the right hash."
            )
        yield f"model: {model.name} loads, hash {base.hash}"
    for data in house.policy.data:
        yield f"data: {data.name}, {_count(house, data)} examples in all"


def _count(house: House, data: Data) -> int:
    from mllm.tasks.load import load_task

    if data.root and not house.place(data.root).is_dir():
        raise DataError(f"The folder {house.place(data.root)} of {data.name!r} does not exist: mend root in site.toml.")
    task = RunConfig().task.model_copy(
        update={"name": data.task, "data": str(house.place(data.root)) if data.root else "builtin"}
    )
    return len(load_task(task).train)
