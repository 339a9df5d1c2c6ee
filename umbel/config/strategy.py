"""Which federated LoRA method runs, and what composes with it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from umbel.config.section import Section


class StrategyConfig(Section):
    """The method and what composes with it; `umbel strategies` lists the methods."""

    name: str = Field(default="ffa-lora", min_length=1)
    """The federated LoRA method."""
    ranks: Literal["same", "mixed"] = "same"
    """Whether clients may train at ranks below lora.rank, as their resources allow."""
    client_ranks: str = Field(default="top", pattern=r"^(top|[1-9]\d*(,[1-9]\d*)*)$", alias="client-ranks")
    """With mixed ranks: top (lora.rank), or a list dealt to the partitions in turn; a node's own rank goes first."""
    side_rank: int = Field(default=0, ge=0, alias="side-rank")
    """Largest rank of a side term of FedEx-LoRA and FLoRA; 0 keeps it exact."""
    sketch: int = Field(default=0, ge=0)
    """Width of FedASK's sketch; 0 chooses by cohort and rank."""
    personal_rank: int = Field(default=0, ge=0, alias="personal-rank")
    """Ranks of lora.rank that FedDPA keeps personal; 0 takes half."""
    density: float = Field(default=0.25, gt=0, le=1)
    """Share of values sent by FLASC and by the compressions sparsify and sketch."""
    server_optimizer: Literal["none", "fedavgm", "fedadagrad", "fedadam", "fedyogi"] = Field(
        default="none", alias="server-optimizer"
    )
    """What turns the averaged difference into the server's move; none adds it."""
    server_learning_rate: float = Field(default=1.0, gt=0, allow_inf_nan=False, alias="server-learning-rate")
    """Of the server optimizer."""
    server_momentum: float = Field(default=0.9, ge=0, lt=1, alias="server-momentum")
    """Of the server optimizer (its beta1)."""
    server_tau: float = Field(default=1e-3, gt=0, allow_inf_nan=False, alias="server-tau")
    """Adaptivity of fedadagrad, fedadam and fedyogi."""
    regulariser: Literal["none", "fedprox", "scaffold"] = "none"
    """What corrects the drift of local training."""
    proximal: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    """Strength mu of fedprox."""
    robust: Literal[
        "none", "median", "trimmed-mean", "krum", "multi-krum", "bulyan", "geometric-median", "norm-bound"
    ] = "none"
    """Rule against corrupt clients; without groups it needs single updates to be visible."""
    corrupt: float = Field(default=0.2, ge=0, lt=0.5)
    """Share of the updates (or groups) that the robust rule must withstand."""
    groups: int = Field(default=0, ge=0)
    """Random groups whose secure sums the robust rule compares; 0 compares single updates."""
    compression: Literal["none", "quantize", "sparsify", "sketch", "sparsify-quantize", "sketch-quantize"] = "none"
    """How uploads are made smaller."""
    bits: int = Field(default=8, ge=2, le=16)
    """Bits a value of the compressions that quantize."""
    error_feedback: bool = Field(default=False, alias="error-feedback")
    """Add what compression lost to the client's next upload, before clipping."""
    parts: bool = False
    """Average each part (vision, projector, language) only over clients that trained it."""
    buffer: int = Field(default=0, ge=0)
    """Uploads a step of asynchronous aggregation (FedBuff); 0 keeps synchronous rounds."""
    max_staleness: int = Field(default=20, ge=0, alias="max-staleness")
    """Steps that may pass while an asynchronous upload is made; a later one is dropped."""
