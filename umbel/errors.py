"""The exceptions of umbel, one tree.

Every message is one sentence that says what was wrong, what was expected and how to mend it.
The command line prints that sentence and leaves with ``exit_code``; ``docs/exit-codes.md`` has a
section for each code. A traceback that reaches a user is a defect.

::

    UmbelError                      1
    ├── ConfigError                10   an option is unknown, mistyped or cannot be combined
    ├── DataError                  20   a data set, split, line or image cannot be used
    ├── ModelError                 30   a model, checkpoint, part or target cannot be used
    │   └── QuantizationError      31   what was asked to be quantized was not
    ├── AdapterError               35   a vector does not fit its AdapterSpec
    ├── StrategyError              40   a federated method cannot work in this combination
    ├── PrivacyError               50   a guarantee cannot be stated or kept
    │   ├── PlanError              51   the privacy plan does not construct
    │   ├── BudgetExceeded         52   the next step would cost more than what is left
    │   ├── UnclaimedParameter     53   the clipping engine does not know a trainable parameter
    │   ├── LedgerError            54   the ledger is newer, damaged or altered
    │   └── AuditFailure           55   the audit measured more leakage than the plan claims
    ├── SecAggError                60   secure aggregation cannot run
    │   ├── ProtocolViolation      61   a message breaks the protocol: refused, nothing is revealed
    │   └── RoundAborted           62   too few survivors: nothing was revealed, repeat the round
    ├── WireError                  65   a message cannot be read
    ├── RunError                   70   a run directory, checkpoint or report cannot be used
    ├── FederationError            75   too few clients answered, or none can be reached
    ├── SiteError                  80   a site refuses or cannot do what was asked
    └── DeployError                85   provisioning, release or preflight failed
"""

from __future__ import annotations

from typing import ClassVar


class UmbelError(Exception):
    """Base of all errors that umbel raises on purpose."""

    exit_code: ClassVar[int] = 1


class ConfigError(UmbelError):
    """An option is unknown, has the wrong type or cannot be combined with another."""

    exit_code = 10


class DataError(UmbelError):
    """A data set, split, line or image cannot be used."""

    exit_code = 20


class ModelError(UmbelError):
    """A model, checkpoint, part or set of target modules cannot be used."""

    exit_code = 30


class QuantizationError(ModelError):
    """What was asked to be quantized was not, or its gradients would be wrong."""

    exit_code = 31


class AdapterError(UmbelError):
    """A vector, tensor or file does not fit the AdapterSpec."""

    exit_code = 35


class StrategyError(UmbelError):
    """A federated method cannot work in this combination."""

    exit_code = 40


class PrivacyError(UmbelError):
    """A privacy guarantee cannot be stated or kept."""

    exit_code = 50


class PlanError(PrivacyError):
    """The privacy plan does not construct."""

    exit_code = 51


class BudgetExceeded(PrivacyError):
    """The next step would cost more than what is left of the budget."""

    exit_code = 52


class UnclaimedParameter(PrivacyError):
    """The clipping engine does not know a trainable parameter."""

    exit_code = 53


class LedgerError(PrivacyError):
    """The ledger is newer than this software, damaged, or altered by hand."""

    exit_code = 54


class AuditFailure(PrivacyError):
    """The audit measured more leakage than the plan claims."""

    exit_code = 55


class SecAggError(UmbelError):
    """Secure aggregation cannot run with these parameters."""

    exit_code = 60


class ProtocolViolation(SecAggError):
    """A message breaks the protocol; it was refused and nothing was revealed.

    ``reason`` is one word for reports and tests (``privacy.secagg.reasons`` lists them).
    """

    exit_code = 61

    def __init__(self, message: str, reason: str = "malformed") -> None:
        super().__init__(message)
        self.reason = str(reason)


class RoundAborted(SecAggError):
    """Too few survivors; nothing was revealed and the round may be repeated with fresh keys."""

    exit_code = 62


class WireError(UmbelError):
    """A message cannot be read."""

    exit_code = 65


class RunError(UmbelError):
    """A run directory, checkpoint or report cannot be used."""

    exit_code = 70


class FederationError(UmbelError):
    """Too few clients answered, or none can be reached."""

    exit_code = 75


class SiteError(UmbelError):
    """A site refuses, or cannot do, what was asked."""

    exit_code = 80


class DeployError(UmbelError):
    """Provisioning, release or preflight failed."""

    exit_code = 85
