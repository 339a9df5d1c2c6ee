"""What a person reads about a run: the summary, the plots and ``report.html``."""

from coordinator.report.html import render_report, write_report
from coordinator.report.summary import Summary, TypeRow, summarize

__all__ = ["Summary", "TypeRow", "render_report", "summarize", "write_report"]
