"""Import paths of before the package had wings: they still work in this release, with a warning.

Importing this module puts a finder behind all others, which is asked only for what is not there.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "cache": "core.cache",
    "comparison": "runs.comparison",
    "config": "core.config",
    "divergences": "dice_backends.divergences",
    "engines": "policies.engines",
    "evaluation": "policies.evaluation",
    "export": "policies.export",
    "exported": "policies.exported",
    "guidance": "diffusion.guidance",
    "inversion": "dice_backends.divergences.inversion",
    "loop": "parts.loop",
    "networks": "diffusion.networks",
    "options": "runs.options",
    "part": "parts.part",
    "plugins": "core.plugins",
    "policy": "policies.policy",
    "presets": "runs.presets",
    "prior": "diffusion.prior",
    "randomness": "core.randomness",
    "recipe": "runs.recipe",
    "samplers": "diffusion.samplers",
    "schedule": "diffusion.schedule",
    "solvers": "diffusion.solvers",
    "statistics": "core.statistics",
    "status": "runs.status",
    "storage": "core.storage",
    "tensorboard": "runs.tensorboard",
    "training": "runs.training",
}
"""Name of a module below `ddice` as it was -> as it is."""


def new_name(name: str) -> str | None:
    """The full name of a module of today for one of before, None where nothing was moved."""
    package, _, rest = name.partition(".")
    first, _, inner = rest.partition(".")
    if package != "ddice" or first not in MOVED:
        return None
    return ".".join(["ddice", MOVED[first], *([inner] if inner else [])])


class MovedModules(MetaPathFinder, Loader):
    """Finds `ddice.solvers` as `ddice.diffusion.solvers`: one module, under both names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None if new_name(fullname) is None else ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> None:
        """Python's own: it is replaced at once by the module of today."""

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        new = new_name(old)
        assert new is not None
        warnings.warn(
            f"{old} is now {new}: import it from there; the old name goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        # The import system returns what stands here afterwards, so that both names give one module.
        sys.modules[old] = importlib.import_module(new)


finder = MovedModules()
sys.meta_path.append(finder)
