"""Named recipes: ddice's own default and one for each domain, the published implementation with
its fifteen tasks, and the printed equations.
"""

from ddice.runs.presets.choices import Choice
from ddice.runs.presets.domains import DOMAINS
from ddice.runs.presets.fitting import fitting_preset
from ddice.runs.presets.named import PRESETS, describe, unpublished, why
from ddice.runs.presets.reasons import REASONS, reason
from ddice.runs.presets.tasks import TASKS, Task

__all__ = [
    "DOMAINS",
    "PRESETS",
    "REASONS",
    "TASKS",
    "Choice",
    "Task",
    "describe",
    "fitting_preset",
    "reason",
    "unpublished",
    "why",
]
