"""Comparison: backends x extractors on one dataset or several, their results, and the table and
plots of them.
"""

from ddice.runs.comparison.failures import CellsFailed
from ddice.runs.comparison.grid import Cell, Comparison
from ddice.runs.comparison.runner import compare
from ddice.runs.comparison.store import Result, Results
from ddice.runs.comparison.table import render_table

__all__ = ["Cell", "CellsFailed", "Comparison", "Result", "Results", "compare", "render_table"]
