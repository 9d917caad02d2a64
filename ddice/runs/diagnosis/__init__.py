"""Why an extractor wins or loses: `ddice diagnose`."""

from ddice.runs.diagnosis.report import diagnosis

__all__ = ["diagnosis"]
