"""Named recipes: ddice's own default, the published implementation with its fifteen tasks, and
the printed equations.
"""

from ddice.runs.presets.named import PRESETS, describe, unpublished
from ddice.runs.presets.reasons import REASONS, reason
from ddice.runs.presets.tasks import TASKS, Task

__all__ = ["PRESETS", "REASONS", "TASKS", "Task", "describe", "reason", "unpublished"]
