import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from coordinator.report import render_report, write_report
from coordinator.report.plots import draw_all
from coordinator.run_folder import read_config
from coordinator.tracking import Metrics, read_metrics
from tests.coordinator.sample_run import round_line, start_line, write_run
from umbel.config import RunConfig
from umbel.errors import RunError

_VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects text and attributes, and insists that tags close in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.links = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "data", "srcset", "action")]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def test_the_report_holds_every_figure_and_nothing_from_outside(tmp_path):
    path = write_report(write_run(tmp_path))
    text = path.read_text()
    page = Page(text)
    for expected in ("72.0%", "95.0%", "96.0%", "+23.0", "+2.0 points forgotten, public", "what colour", "86.0%",
                     "14.9 MiB", "65,536 values", "learning-rate", "0.003", "torch", "2.13.0", "nf4",
                     "No differential privacy", "the coordinator could read each client's update"):  # fmt: skip
        assert expected in page.text, expected
    assert [link for link in page.links if not link.startswith("#")] == []
    assert "<script" not in text
    assert not re.search(r"@import|url\((?!#)", text)
    addresses = set(re.findall(r"https?://[^\"'\s<]+", text))
    assert addresses <= {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}  # XML names, not resources


def test_five_plots_that_are_well_formed_and_do_not_share_names(tmp_path):
    plots = draw_all(read_metrics(write_run(tmp_path) / "metrics.jsonl"))
    assert list(plots) == ["Accuracy", "Loss", "Participation", "Traffic", "Time"]
    clips = []
    for svg in plots.values():
        root = ET.fromstring(svg)
        assert root.get("viewBox")
        clips.append({e.get("id") for e in root.iter("{http://www.w3.org/2000/svg}clipPath")})
    assert not set.intersection(*clips)
    assert "central" in plots["Accuracy"]
    assert "rejected" in plots["Participation"]


def test_the_same_metrics_give_the_same_page(tmp_path):
    folder = write_run(tmp_path)
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_privacy_and_secure_aggregation_are_stated(tmp_path):
    privacy = {"epsilon": 7.9, "delta": 1e-5, "unit": "example", "relation": "add-remove", "sampler": "poisson",
               "statement": "Adding or removing one example changes little."}  # fmt: skip
    secagg = {"threshold": 14, "mode": "sparse graph", "threat_model": "honest-but-curious coordinator"}
    folder = write_run(tmp_path, start=start_line(privacy=privacy, secagg=secagg))
    metrics = read_metrics(folder / "metrics.jsonl")
    stages = {"shares": {"alive": 19, "seconds": 0.5, "bytes": 2048}}
    from coordinator.tracking import RoundLine

    lines = [
        RoundLine.model_validate({**round_line(1, 0.8, secagg={"threshold": 14, "stages": stages}), "kind": "round"}),
        RoundLine.model_validate({**round_line(2, 0.9, secagg={"threshold": 14, "stages": stages}), "kind": "round"}),
    ]
    page = Page(render_report("x", read_config(folder), Metrics(metrics.start, lines)))
    for expected in ("7.9", "1e-05", "add-remove", "poisson", "Adding or removing one example", "sparse graph",
                     "honest-but-curious coordinator", "shares 19 0.5 4.0 KiB", "has not ended"):  # fmt: skip
        assert expected in page.text, expected
    assert "No differential privacy" not in page.text


def test_lines_left_out_of_the_data_are_told(tmp_path):
    task = {"name": "folder", "headline": "eval", "skipped": ["eval.jsonl, line 7: <b>no such image</b>."]}
    page = Page(write_report(write_run(tmp_path, start=start_line(task=task))).read_text())
    assert "1 lines of its evaluation data" in page.text
    assert "eval.jsonl, line 7: <b>no such image</b>." in page.text


def test_an_empty_run_still_gives_a_page():
    page = Page(render_report("empty", RunConfig(), Metrics()))
    assert "has not ended" in page.text
    assert "0 of 8 rounds" in page.text
    assert draw_all(Metrics()) == {}


def test_what_stands_in_a_file_cannot_become_markup():
    hostile = "<script>alert(1)</script>"
    line = {"kind": "start", **start_line(task={"name": hostile}, versions={hostile: hostile})}
    from coordinator.tracking import StartLine

    metrics = Metrics(StartLine.model_validate(line), [])
    text = render_report(hostile, RunConfig.from_flat({"model.name": hostile}), metrics)
    assert "<script" not in text
    Page(text)


def test_a_set_name_with_markup_cannot_leave_the_plot():
    from coordinator.tracking import RoundLine

    figures = {r"<g>&$\frac$": {"accuracy": 0.5, "loss": 1.0, "count": 2}}
    metrics = Metrics(None, [RoundLine.model_validate({"kind": "round", "round": 1, "evaluation": figures})])
    for svg in draw_all(metrics).values():
        ET.fromstring(svg)


def test_refusals(tmp_path):
    with pytest.raises(RunError, match="cannot be read"):
        write_report(tmp_path)
    folder = write_run(tmp_path)
    (folder / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(RunError, match="Line 1"):
        write_report(folder)
    assert not (folder / "report.html").exists()
