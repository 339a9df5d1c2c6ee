"""Audits: measuring what leaks and comparing it with what is claimed."""

from privacy.audit.blackbox import ClientCanaries, ExampleCanaries, loss_scores, train_and_score
from privacy.audit.canaries import GradientCanaries, canary_scores, coins, gaussian_release
from privacy.audit.one_run import OneRunReport, guess, judge, rejects
from privacy.audit.sensitivity import SensitivityReport, sensitivity_check
from privacy.audit.tradeoff import CurveTradeOff, GaussianTradeOff, TradeOff, check_dp_sgd, dp_sgd_trade_off

__all__ = [
    "ClientCanaries",
    "CurveTradeOff",
    "ExampleCanaries",
    "GaussianTradeOff",
    "GradientCanaries",
    "OneRunReport",
    "SensitivityReport",
    "TradeOff",
    "canary_scores",
    "check_dp_sgd",
    "coins",
    "dp_sgd_trade_off",
    "gaussian_release",
    "guess",
    "judge",
    "loss_scores",
    "rejects",
    "sensitivity_check",
    "train_and_score",
]
