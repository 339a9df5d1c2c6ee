"""RunConfig and its sections."""

from umbel.config.federation import EvaluateConfig, FederationConfig, RunSection
from umbel.config.model import LoraConfig, ModelConfig, Quantization
from umbel.config.privacy import PrivacyConfig
from umbel.config.run_config import RunConfig
from umbel.config.secagg import SecAggConfig
from umbel.config.section import Section
from umbel.config.strategy import StrategyConfig
from umbel.config.task import TaskConfig
from umbel.config.train import TrainConfig

__all__ = [
    "EvaluateConfig",
    "FederationConfig",
    "LoraConfig",
    "ModelConfig",
    "PrivacyConfig",
    "Quantization",
    "RunConfig",
    "RunSection",
    "SecAggConfig",
    "Section",
    "StrategyConfig",
    "TaskConfig",
    "TrainConfig",
]
