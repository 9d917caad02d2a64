"""Named recipes: ddice's own default, the published implementation with its fifteen tasks, and
the printed equations.
"""

from ddice.presets.named import PRESETS, describe, unpublished
from ddice.presets.reasons import REASONS, reason
from ddice.presets.tasks import TASKS, Task

__all__ = ["PRESETS", "REASONS", "TASKS", "Task", "describe", "reason", "unpublished"]
