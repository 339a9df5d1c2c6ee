"""The registry: which releases there are, which is current, and what was done. SQLite by default, PostgreSQL by URL."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    Integer,
    LargeBinary,
    String,
    UniqueConstraint,
    create_engine,
    event,
    func,
    select,
    update,
)
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, ProgrammingError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from umbel.errors import DeployError

T = TypeVar("T")
_ATTEMPTS = 20


class Table(DeclarativeBase):
    """Base of the registry's tables."""


class Release(Table):
    """One signed release; rows are written once and never changed."""

    __tablename__ = "umbel_releases"
    __table_args__ = (UniqueConstraint("name", "version"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(63), index=True)
    version: Mapped[int] = mapped_column(BigInteger)
    run: Mapped[str] = mapped_column(String(8192))
    created: Mapped[int] = mapped_column(BigInteger)
    size: Mapped[int] = mapped_column(BigInteger)
    manifest: Mapped[bytes] = mapped_column(LargeBinary)
    signature: Mapped[bytes] = mapped_column(LargeBinary)


class Current(Table):
    """The signed head of each name."""

    __tablename__ = "umbel_release_heads"

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    version: Mapped[int] = mapped_column(BigInteger)
    sequence: Mapped[int] = mapped_column(BigInteger)
    head: Mapped[bytes] = mapped_column(LargeBinary)
    signature: Mapped[bytes] = mapped_column(LargeBinary)


class Event(Table):
    """What was done: published or rolled back. Appended only."""

    __tablename__ = "umbel_release_events"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    time: Mapped[int] = mapped_column(BigInteger)
    action: Mapped[str] = mapped_column(String(32))
    name: Mapped[str] = mapped_column(String(63))
    version: Mapped[int] = mapped_column(BigInteger)


Signed = tuple[bytes, bytes]
"""A document and its signature."""


class Registry:
    """Releases in a database. Several processes may use one at the same time.

    Args:
        url: ``sqlite:///path`` or ``postgresql://user@host/database``.

    Raises:
        DeployError: the URL is none, its driver is not installed, or the database cannot be reached.
    """

    def __init__(self, url: str) -> None:
        self._engine = _engine(url)
        self._shown = self._engine.url.render_as_string(hide_password=True)
        with self._translated():
            try:
                Table.metadata.create_all(self._engine)
            except (IntegrityError, ProgrammingError):
                Table.metadata.create_all(self._engine)  # another process made the tables at the same moment

    def publish(self, name: str, make: Callable[[int], Release], head: Callable[[int, int], Signed]) -> int:
        """Enters a new version and makes it current, both or neither.

        Args:
            name: of the release.
            make: given the new version, its row: the version is part of what is signed.
            head: given version and sequence, the signed head.

        Returns:
            The version.

        Raises:
            DeployError: the database refuses, or others keep publishing under the same name.
        """

        def step(session: Session) -> int:
            newest = session.scalar(select(func.max(Release.version)).where(Release.name == name)) or 0
            session.add(make(newest + 1))
            session.flush()
            self._move(session, name, newest + 1, "publish", head)
            return newest + 1

        return self._retried(step)

    def make_current(self, name: str, version: int, head: Callable[[int, int], Signed]) -> None:
        """Makes an existing version the current one.

        Raises:
            DeployError: there is no such version, or the database refuses.
        """

        def step(session: Session) -> None:
            if session.scalar(select(Release.id).where(Release.name == name, Release.version == version)) is None:
                raise DeployError(f"{name} has no version {version}: 'umbel release list' shows which there are.")
            self._move(session, name, version, "rollback", head)

        self._retried(step)

    def find(self, name: str, version: int = 0) -> Release | None:
        """The release, version 0 meaning the current one; None when there is none."""
        with self._session() as session:
            if version == 0:
                version = session.scalar(select(Current.version).where(Current.name == name)) or 0
            return session.scalar(select(Release).where(Release.name == name, Release.version == version))

    def head(self, name: str) -> Current | None:
        """The signed head of a name; None when nothing was published under it."""
        with self._session() as session:
            return session.get(Current, name)

    def releases(self, name: str = "", limit: int = 1000) -> list[tuple[Release, bool]]:
        """Releases, newest first, each with whether it is current; at most ``limit``."""
        query = select(Release, Current.version).join(Current, Current.name == Release.name)
        if name:
            query = query.where(Release.name == name)
        with self._session() as session:
            rows = session.execute(query.order_by(Release.created.desc(), Release.id.desc()).limit(limit)).all()
            return [(release, release.version == current) for release, current in rows]

    def events(self) -> list[Event]:
        """What was done, oldest first."""
        with self._session() as session:
            return list(session.scalars(select(Event).order_by(Event.id)))

    def close(self) -> None:
        """Gives the connections back."""
        self._engine.dispose()

    def _move(self, session: Session, name: str, version: int, action: str, head: Callable[[int, int], Signed]) -> None:
        """Compares and swaps on the sequence, which works alike on both databases; a loser tries again."""
        known = session.get(Current, name)
        sequence = 1 if known is None else known.sequence + 1
        document, signature = head(version, sequence)
        values: dict[str, Any] = {"version": version, "sequence": sequence, "head": document, "signature": signature}
        if known is None:
            session.add(Current(name=name, **values))
        else:
            swap = update(Current).where(Current.name == name, Current.sequence == sequence - 1).values(**values)
            if session.execute(swap.execution_options(synchronize_session=False)).rowcount != 1:  # type: ignore[attr-defined]
                raise _LostRace
        session.add(Event(time=int(time.time()), action=action, name=name, version=version))

    def _retried(self, step: Callable[[Session], T]) -> T:
        for attempt in range(_ATTEMPTS):
            try:
                with self._session() as session, session.begin():
                    return step(session)
            except (_LostRace, IntegrityError):
                time.sleep(0.01 * (attempt + 1))
        raise DeployError(f"Others keep changing {self._shown}: try again when they have finished.")

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with self._translated(), Session(self._engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except SQLAlchemyError as error:
            reason = " ".join(str(getattr(error, "orig", None) or error).split())[:300]
            raise DeployError(f"The registry {self._shown} cannot be used ({reason}): check the database.") from None


class _LostRace(Exception):
    """Another process moved the head first."""


def default_url(root: Path) -> str:
    """SQLite beside the released files."""
    return f"sqlite:///{root / 'registry.sqlite'}"


def _engine(text: str) -> Engine:
    try:
        url = make_url(text)
        if url.get_backend_name() not in ("sqlite", "postgresql"):
            raise DeployError(
                f"The database {url.get_backend_name()!r} is not supported: give sqlite:///path or postgresql://..."
            )
        if url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        engine = create_engine(url, pool_pre_ping=True)
    except (ArgumentError, NoSuchModuleError):
        raise DeployError("The database URL is none: give sqlite:///path or postgresql://user@host/database.") from None
    except ImportError as error:
        raise DeployError(
            f"The driver of PostgreSQL is not installed ({error}): pip install 'umbel[postgres]'."
        ) from None
    if url.get_backend_name() == "sqlite":
        _prepare_sqlite(engine, url)
    return engine


def _prepare_sqlite(engine: Engine, url: URL) -> None:
    if url.database and url.database != ":memory:":
        try:
            Path(url.database).expanduser().parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DeployError(f"{url.database} cannot be made ({error.strerror}): choose another folder.") from None

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA busy_timeout=10000")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()
