"""Kept calibrations: the same plan, and never one with less noise than the budget needs."""

import json

import pytest

from privacy.plan import PrivacyPlan, remembered
from umbel.config import RunConfig


@pytest.fixture
def wanted(tmp_path, monkeypatch):
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path))
    monkeypatch.setattr(remembered, "calibrated", lambda plan: plan)
    config = RunConfig.from_flat({"federation.rounds": 2, "train.batch-size": 8, "privacy.epsilon": 3.0})
    plan = PrivacyPlan.from_config(config, examples=100)
    monkeypatch.undo()
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path))
    return plan


def kept(tmp_path):
    (file,) = (tmp_path / "cache" / "calibrations").iterdir()
    return file


def test_the_second_time_nothing_is_calibrated(wanted, tmp_path, monkeypatch):
    first = remembered.calibrated(wanted)
    assert 0.9 * wanted.epsilon_budget < first.epsilon() <= wanted.epsilon_budget
    assert json.loads(kept(tmp_path).read_text()) == {"noise_multiplier": first.noise_multiplier}
    monkeypatch.setattr(PrivacyPlan, "calibrated", lambda self: pytest.fail("calibrated again"))
    assert remembered.calibrated(wanted) == first


@pytest.mark.parametrize("found", ["", "[]", '{"noise_multiplier": "x"}', '{"noise_multiplier": NaN}', "{}"])
def test_what_cannot_be_read_is_computed_anew(wanted, tmp_path, found):
    first = remembered.calibrated(wanted)
    kept(tmp_path).write_text(found)
    assert remembered.calibrated(wanted) == first


def test_too_little_noise_is_not_believed(wanted, tmp_path):
    first = remembered.calibrated(wanted)
    kept(tmp_path).write_text(json.dumps({"noise_multiplier": first.noise_multiplier * 0.9}))
    assert remembered.calibrated(wanted) == first
    assert json.loads(kept(tmp_path).read_text())["noise_multiplier"] == first.noise_multiplier


def test_another_budget_is_another_calibration(wanted, tmp_path):
    from dataclasses import replace

    one = remembered.calibrated(wanted)
    other = remembered.calibrated(replace(wanted, epsilon_budget=6.0))
    assert other.noise_multiplier < one.noise_multiplier
    assert len(list((tmp_path / "cache" / "calibrations").iterdir())) == 2


def test_a_folder_that_cannot_be_written_costs_time_only(wanted, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    assert remembered.calibrated(wanted).epsilon() <= wanted.epsilon_budget
