"""Begun: the run ids under which each definition was trained at this site, so that one approval is one run.

Without noise a site's update is the same in every run of a definition. Whoever may run it twice with different cohorts
can subtract the two sums, and what guards one round against that is kept by run: it does not see the other run.
"""

from __future__ import annotations

import json
from pathlib import Path

from umbel.errors import SiteError
from umbel.files import write_atomic


class Begun:
    """One file a definition, named by its hash.

    Args:
        folder: of the files; made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def runs(self, definition: str) -> tuple[str, ...]:
        """Ids of the runs in which a definition was trained, oldest first.

        Raises:
            SiteError: the file that is there cannot be read; nothing may be trained under the definition then.
        """
        path = self._path(definition)
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, RecursionError):
            found = None
        if not isinstance(found, list) or not all(isinstance(run, str) for run in found):
            raise SiteError(f"{path} holds no list of run ids: restore it from the backup, until then nothing trains.")
        return tuple(found)

    def note(self, definition: str, run: str) -> None:
        """Remembers a run, synced before this returns; a known one changes nothing.

        Raises:
            SiteError: see :meth:`runs`.
            RunError: the file cannot be written: the run must not train.
        """
        known = self.runs(definition)
        if run not in known:
            write_atomic(self._path(definition), json.dumps([*known, run]).encode(), mode=0o600)

    def _path(self, definition: str) -> Path:
        return self._folder / f"{definition}.json"
