"""ActorPool: batches to actors, answers back; whatever dies, each batch counts once or not at all.

An answer exists only when it has been fetched whole. A batch whose actor or machine died before that is carried out
again by another actor, so nothing is counted twice and nothing is lost. A batch that keeps killing actors is cut in
half until the device that does it stands alone, and that one is given up.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from simulations.actor import Ready
from simulations.orders import Answer, Batch
from umbel.errors import FederationError, UmbelError

logger = logging.getLogger("flwr.umbel")

_ATTEMPTS = 2
"""How often a batch may lose its actor before it is cut in half."""
_DEPTH = 2
"""Batches with an actor at a time: the next one is there when it finishes one."""
_REPLACEMENTS = 64
_PATIENCE = 600.0
"""Seconds without any living actor after which the simulation is given up."""


@dataclass
class _Worker:
    handle: Any
    starting: Any
    alive: bool = False
    work: dict[Any, Batch] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """A batch with its answer, or without one where its only device was given up."""

    batch: Batch
    answer: Answer | None
    reason: str = ""


class ActorPool:
    """A fixed number of actors, replaced when they die.

    Args:
        make: starts an actor and returns its handle.
        size: how many.
        check: looks at what an actor says of itself; raises to refuse it.
    """

    def __init__(self, make: Callable[[], Any], size: int, check: Callable[[Ready], None]) -> None:
        self._make = make
        self._check = check
        self._workers: list[_Worker] = []
        self._queue: deque[Batch] = deque()
        self._last_alive = time.monotonic()
        self.replaced = 0
        self.busy_seconds = 0.0
        for _ in range(size):
            self._start()

    @property
    def waiting(self) -> int:
        """Batches that are not answered yet."""
        return len(self._queue) + sum(len(worker.work) for worker in self._workers)

    def submit(self, batch: Batch) -> None:
        """Takes a batch in."""
        self._queue.append(batch)
        self._assign()

    def warm(self) -> None:
        """Waits until every actor has loaded what it needs, or at least one has where others cannot start.

        Raises:
            UmbelError: what an actor could not load.
            FederationError: no actor starts.
        """
        while any(not worker.alive for worker in self._workers):
            pending = [worker.starting for worker in self._workers if not worker.alive]
            done, _ = ray.wait(pending, num_returns=1, timeout=5.0)
            if not done and any(worker.alive for worker in self._workers):
                return
            self._check_starting(set(done))
            self._patience()

    def step(self, timeout: float) -> list[Done]:
        """Waits for the next answers, at most ``timeout`` seconds; gives lost batches to other actors.

        Raises:
            FederationError: no actor is left and none starts.
        """
        pending = [worker.starting for worker in self._workers if not worker.alive]
        pending += [reference for worker in self._workers for reference in worker.work]
        if not pending:
            return []
        done, _ = ray.wait(pending, num_returns=1, timeout=timeout)
        if not done:
            self._patience()
            return []
        found, _ = ray.wait(pending, num_returns=len(pending), timeout=0)
        ready = set(found)
        self._check_starting(ready)
        finished: list[Done] = []
        for worker in list(self._workers):
            for reference in [reference for reference in worker.work if reference in ready]:
                finished += self._fetch(worker, reference)
                break  # one whole answer of each actor at a time is in memory
        self._assign()
        self._patience()
        return finished

    def stop(self) -> None:
        """Ends all actors; batches that are not answered are forgotten."""
        for worker in self._workers:
            ray.kill(worker.handle, no_restart=True)
        self._workers.clear()
        self._queue.clear()

    def forget(self) -> None:
        """Forgets batches that nobody works on yet."""
        self._queue.clear()

    def _start(self) -> None:
        handle = self._make()
        self._workers.append(_Worker(handle, handle.ready.remote()))

    def _assign(self) -> None:
        # Round by round over the workers, so that few batches are spread before any worker gets a second.
        for depth in range(_DEPTH):
            for worker in self._workers:
                while self._queue and self._queue[0].expires < time.time():
                    self._queue.popleft()  # nobody waits for it any more
                if self._queue and worker.alive and len(worker.work) <= depth:
                    batch = self._queue.popleft()
                    worker.work[worker.handle.run.remote(batch)] = batch

    def _check_starting(self, ready: set[Any]) -> None:
        for worker in [worker for worker in self._workers if not worker.alive and worker.starting in ready]:
            try:
                self._check(ray.get(worker.starting))
            except RayTaskError as error:
                cause = getattr(error, "cause", None)
                if isinstance(cause, UmbelError):
                    raise cause from None
                raise FederationError(f"An actor of the simulation cannot start ({_first_line(error)}).") from None
            except RayError as error:
                self._replace(worker, error)
                continue
            worker.alive = True
        self._assign()

    def _fetch(self, worker: _Worker, reference: Any) -> list[Done]:
        batch = worker.work.pop(reference)
        try:
            answer: Answer = ray.get(reference)
        except RayTaskError as error:  # the batch itself cannot be carried out: no other actor would do better
            return self._give_up(batch, _first_line(error))
        except RayError as error:
            if worker in self._workers:
                self._replace(worker, error)
            return self._again(batch, _first_line(error))
        self.busy_seconds += answer.seconds
        return [Done(batch, answer)]

    def _replace(self, worker: _Worker, error: Exception) -> None:
        self._workers.remove(worker)
        lost = list(worker.work.values())
        worker.work.clear()
        self._queue.extendleft(lost)
        self.replaced += 1
        logger.warning("An actor of the simulation was lost (%s); its work is done again", _first_line(error))
        if self.replaced > _REPLACEMENTS:
            raise FederationError(
                f"{self.replaced} actors of the simulation died, perhaps for lack of memory: lower lanes or actors "
                "('umbel simulate SCENARIO --plan' shows what fits) and run again with the same run.id to resume."
            )
        self._start()

    def _again(self, batch: Batch, reason: str) -> list[Done]:
        batch.attempts += 1
        if batch.attempts <= _ATTEMPTS:
            self._queue.appendleft(batch)
            return []
        if len(batch.orders) == 1:
            return [Done(batch, None, reason)]
        self._queue.extendleft(batch.halves())
        return []

    def _give_up(self, batch: Batch, reason: str) -> list[Done]:
        return [Done(batch, None, reason)]

    def _patience(self) -> None:
        if any(worker.alive for worker in self._workers):
            self._last_alive = time.monotonic()
        elif time.monotonic() - self._last_alive > _PATIENCE:
            raise FederationError(
                f"No actor of the simulation could start for {_PATIENCE:.0f} seconds: give the Ray cluster more CPUs "
                "or memory, and run again with the same run.id to resume."
            )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kind = type(error).__name__
    return f"{kind}: {(lines[-1] if isinstance(error, RayTaskError) else lines[0])[:200]}" if lines else kind
