"""Comparison: backends x extractors on one dataset, their results, and the table and plots of
them.
"""

from ddice.comparison.grid import Cell, Comparison
from ddice.comparison.report import render_table
from ddice.comparison.runner import compare
from ddice.comparison.store import Result, Results

__all__ = ["Cell", "Comparison", "Result", "Results", "compare", "render_table"]
