"""Which data the clients hold and how it is divided among them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from umbel.config.section import Section

FRAMES = 8
"""Of a video, where nobody says."""


class TaskConfig(Section):
    """The task and its partition."""

    name: Literal["easy-vqa", "folder"] = "easy-vqa"
    """easy-vqa (published, built in) or folder (your own images)."""
    data: str = Field(default="builtin", min_length=1)
    """``builtin`` for easy-vqa; for ``folder`` the directory with train.jsonl and eval.jsonl."""
    partition: Literal["iid", "dirichlet", "question-type", "natural"] = "dirichlet"
    """How the private pool is divided among the clients."""
    alpha: float = Field(default=0.5, gt=0)
    """Concentration of the Dirichlet partition over answers: small is more skewed."""
    key: str = Field(default="site", min_length=1)
    """The field of each line that names its owner, for the natural partition."""
    minimum: int = Field(default=200, ge=1)
    """Fewest examples a client may get."""
    bad_lines: Literal["refuse", "skip"] = Field(default="refuse", alias="bad-lines")
    """What happens to a line that cannot be read or whose image is missing or corrupt."""
    frames: int = Field(default=FRAMES, ge=1, le=256)
    """Most frames of a video that an example sees, at even distances; of ``folder``."""
