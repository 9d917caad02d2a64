"""A comparison as one page: `ddice report`."""

from ddice.runs.report.page import write_report

__all__ = ["write_report"]
