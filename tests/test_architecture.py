"""The imports of the package, read from its text: strictly downwards through the levels,
whatever the place of the import statement.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import ddice

PACKAGE = Path(ddice.__file__).parent
# A name is a module of ddice/ or a folder. A module imports from lower levels only, and from its
# own folder.
LEVELS = (
    ("core",),
    ("data",),
    ("parts",),
    ("diffusion",),
    ("dice_backends",),
    ("policies",),
    ("extractors", "collection", "ope"),
    ("pictures",),
    ("runs",),
    ("testing",),
    ("cli",),
)
ROOT = "__init__"  # the public names: above everything, imported by nobody inside
HEAVY = {
    "gymnasium",
    "gymnasium_robotics",
    "minari",
    "h5py",
    "matplotlib",
    "mujoco",
    "PIL",
    "onnx",
    "onnxruntime",
    "triton",
    "stable_baselines3",
    "huggingface_hub",
    "pyarrow",
    "jinja2",
}
# imports triton, which finds its kernels in modules alone; nobody imports it with a module
KERNELS = "policies.engines.kernels"
DATA_ONLY = {"minari", "h5py", "pyarrow"}
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names} | {
    ROOT: len(LEVELS)
}


def modules(package: Path) -> dict[str, Path]:
    """Dotted name relative to the package -> file; "data" and "data.spec", and "__init__" for
    the package itself.
    """
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


def imported(path: Path, name: str, known: dict[str, Path]) -> Iterator[tuple[ast.stmt, str]]:
    """Every import of a file with the absolute name of what it imports, wherever it stands: in
    functions and under TYPE_CHECKING too.
    """
    package = (
        "ddice"
        if name == ROOT
        else f"ddice.{name}"
        if path.name == "__init__.py"
        else f"ddice.{name}".rpartition(".")[0]
    )
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base] if base else parent)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield node, full if full.removeprefix("ddice.") in known else base


def inside(target: str) -> str | None:
    """The name inside the package, "__init__" for the package itself, None for anything else."""
    if target == "ddice":
        return ROOT
    return target.removeprefix("ddice.") if target.startswith("ddice.") else None


def level_problems(package: Path) -> list[str]:
    known = modules(package)
    problems = [
        f"{path.relative_to(package)}: in no level. List {name.split('.')[0]!r} in LEVELS of "
        "tests/test_architecture.py, above all that it imports"
        for name, path in known.items()
        if name.split(".")[0] not in LEVEL_OF
    ]
    for name, path in known.items():
        top = name.split(".")[0]
        for node, target in imported(path, name, known):
            other = inside(target)
            if (
                other is None
                or top not in LEVEL_OF
                or (other_top := other.split(".")[0]) not in LEVEL_OF
            ):
                continue
            where = f"{path.relative_to(package)}:{node.lineno}"
            if other == top and path.name != "__init__.py":
                problems.append(
                    f"{where}: imports its own folder's __init__; import the module that "
                    "defines the name"
                )
            elif other_top != top and LEVEL_OF[other_top] >= LEVEL_OF[top]:
                levels = (
                    f"{name} (level {LEVEL_OF[top]}) imports {other} (level {LEVEL_OF[other_top]})"
                )
                problems.append(f"{where}: {levels}; imports go strictly downwards")
    return problems


def cycle(package: Path) -> list[str]:
    known = modules(package)
    graph = {
        name: {
            other for _, target in imported(path, name, known) if (other := inside(target)) in known
        }
        for name, path in known.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" -> ".join(error.args[1])]
    return []


def outermost(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs when the module is imported: all but the bodies of functions and what
    only type checkers read.
    """
    for child in ast.iter_child_nodes(tree):
        for_types = isinstance(child, ast.If) and ast.unparse(child.test) in (
            "TYPE_CHECKING",
            "typing.TYPE_CHECKING",
        )
        if not for_types and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
            yield from outermost(child)


def third_party_problems(package: Path) -> list[str]:
    known, problems = modules(package), []
    for name, path in known.items():
        at_import = {
            node.lineno
            for node in outermost(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        for node, target in imported(path, name, known):
            first, where = target.split(".")[0], f"{path.relative_to(package)}:{node.lineno}"
            if target == f"ddice.{KERNELS}" and node.lineno in at_import:
                problems.append(
                    f"{where}: imports {target} with the module, and triton with it; import it "
                    "inside the function that uses it"
                )
            if first in HEAVY and node.lineno in at_import and (name, first) != (KERNELS, "triton"):
                problems.append(
                    f"{where}: imports {first} with the module; import it inside the function "
                    "that uses it"
                )
            if first in DATA_ONLY and name.split(".")[0] != "data":
                problems.append(f"{where}: imports {first}; only ddice/data/ may")
            if first in PICKLES:
                problems.append(f"{where}: imports {first}; nothing is pickled here")
        for call in (
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        ):
            called, where = ast.unparse(call.func), f"{path.relative_to(package)}:{call.lineno}"
            if called in ("torch.load", "torch.save") or any(
                k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in call.keywords
            ):
                problems.append(f"{where}: {called} pickles; use ddice.core.storage")
            if called.split(".")[-1] in ("import_module", "__import__") and any(
                isinstance(a, ast.Constant) and a.value in HEAVY for a in call.args
            ):
                problems.append(f"{where}: imports a heavy package by a detour")
    return problems


def init_problems(package: Path) -> list[str]:
    """A package's __init__ holds its docstring, imports, __all__ and type aliases: the union
    that is a registry. The outermost one may import on demand.
    """
    problems = []
    for path in sorted(package.rglob("__init__.py")):
        for node in ast.parse(path.read_text()).body:
            is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            is_import = isinstance(node, ast.Import | ast.ImportFrom)
            is_name = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in (
                "__all__",
                "__version__",
            )
            on_demand = path.parent == package and ast.unparse(node).startswith("if TYPE_CHECKING:")
            is_alias = isinstance(node, ast.Assign) and isinstance(
                node.value, ast.Subscript | ast.BinOp
            )
            if not (is_docstring or is_import or is_name or is_alias or on_demand):
                problems.append(
                    f"{path.relative_to(package)}:{node.lineno}: "
                    f"{ast.unparse(node).splitlines()[0]}; an __init__ only passes names on"
                )
    return problems


CHECKS = {
    "levels": level_problems,
    "cycles": cycle,
    "third parties": third_party_problems,
    "inits": init_problems,
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
def test_the_package_keeps_its_architecture(check) -> None:
    problems = check(PACKAGE)
    assert not problems, "\n".join(problems)


def test_the_package_shows_its_wings() -> None:
    """What stands in ddice/ at first sight: the wings, the public names, and the mark of types."""
    there = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert there == {*LEVEL_OF.keys() - {ROOT}, "__init__.py", "py.typed"}
    assert len(there) <= 15


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    assert not {name.split(".")[-1] for name in modules(PACKAGE)} & {
        "utils",
        "util",
        "helpers",
        "common",
        "misc",
    }


# what -> (file, its text, the check that must complain, and how)
BROKEN = {
    "upwards": (
        "diffusion/networks.py",
        "from ddice.policies.policy import Policy",
        "levels",
        r"networks\.py:1: diffusion\.networks \(level \d+\) imports policies\.policy \(level \d+\)",
    ),
    "sideways": (
        "extractors/base.py",
        "import ddice.collection.collecting",
        "levels",
        r"extractors\.base \(level \d+\) imports collection\.collecting \(level \d+\)",
    ),
    "wing from the root": (
        "core/config.py",
        "from ddice import parts",
        "levels",
        r"core\.config \(level \d+\) imports parts",
    ),
    "relative": (
        "data/spec.py",
        "from ..diffusion.prior import DiffusionPrior",
        "levels",
        r"data/spec\.py:1: data\.spec \(level \d+\) imports diffusion\.prior",
    ),
    "relative module": (
        "data/spec.py",
        "from ..diffusion import prior",
        "levels",
        r"data\.spec \(level \d+\) imports diffusion\.prior",
    ),
    "in a function": (
        "parts/loop.py",
        "def f():\n    from ddice.policies import policy",
        "levels",
        r"loop\.py:2: parts\.loop \(level \d+\) imports policies\.policy",
    ),
    "for types": (
        "parts/loop.py",
        "import typing\nif typing.TYPE_CHECKING:\n    from ddice.policies.policy import Policy",
        "levels",
        r"loop\.py:3: parts\.loop .* policies\.policy",
    ),
    "the root": (
        "policies/policy.py",
        "from ddice import DiffusionPrior",
        "levels",
        r"policies\.policy .level \d+. imports __init__ .level \d+.",
    ),
    "own init": (
        "data/spec.py",
        "from ddice.data import Batch",
        "levels",
        "imports its own folder's __init__",
    ),
    "not listed": (
        "novel.py",
        "",
        "levels",
        r"novel\.py: in no level\. List 'novel' in LEVELS of tests/test_architecture\.py",
    ),
    "folder not listed": ("novel/part.py", "", "levels", r"novel/part\.py: in no level"),
    "cycle in a folder": ("data/spec.py", "from ddice.data import arrays", "cycles", r"data\.spec"),
    "heavy": (
        "data/spec.py",
        "import numpy\nimport h5py",
        "third parties",
        r"data/spec\.py:2: imports h5py with the module",
    ),
    "kernels": (
        "policies/policy.py",
        "import ddice.policies.engines.kernels",
        "third parties",
        r"policy\.py:1: imports ddice\.policies\.engines\.kernels with the module",
    ),
    "kernels' own": (
        "policies/engines/kernels.py",
        "import triton, onnx",
        "third parties",
        r"engines/kernels\.py:1: imports onnx with the module",
    ),
    "heavy in a try": (
        "cli/main.py",
        "try:\n    import mujoco\nexcept ImportError:\n    pass",
        "third parties",
        r"cli/main\.py:2: imports mujoco",
    ),
    "heavy in a class": (
        "cli/main.py",
        "class A:\n    from gymnasium import Env",
        "third parties",
        "imports gymnasium with the module",
    ),
    "data only": (
        "policies/policy.py",
        "def f():\n    import minari",
        "third parties",
        r"policy\.py:2: imports minari; only ddice/data/ may",
    ),
    "pickle": (
        "policies/policy.py",
        "def f():\n    import pickle",
        "third parties",
        r"policy\.py:2: imports pickle",
    ),
    "hidden pickle": (
        "policies/policy.py",
        "import torch\ntorch.load('x')",
        "third parties",
        r"policy\.py:2: torch\.load pickles",
    ),
    "numpy pickle": (
        "policies/policy.py",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "third parties",
        r"np\.load pickles",
    ),
    "detour": (
        "policies/policy.py",
        "import importlib\nimportlib.import_module('minari')",
        "third parties",
        "detour",
    ),
    "logic": ("runs/__init__.py", "def f(): ...", "inits", r"runs/__init__\.py:1: def f"),
    "a call": ("__init__.py", "print()", "inits", r"__init__\.py:1: print"),
}
CLEAN = {
    "__init__.py": '"""Names."""\n\nfrom ddice.cli.main import main\n\n__all__ = ["main"]\n',
    "data/__init__.py": "from ddice.data.spec import Spec\n",
    "data/arrays.py": "from ddice.data.spec import Spec\n",
    "data/spec.py": "from ddice.core.config import Config\n",
    "parts/loop.py": (
        "import typing\n\nfrom ddice.core.storage import save\n\n"
        "if typing.TYPE_CHECKING:\n    import gymnasium\n"
    ),
    "diffusion/prior.py": (
        "def f():\n    from ddice.parts.loop import run\n    import gymnasium\n"
    ),
    **{
        f"{name}.py": ""
        for name in (
            "core/config",
            "core/storage",
            "collection/collecting",
            "diffusion/networks",
            "parts/__init__",
            "policies/policy",
            "cli/main",
        )
    },
}


@pytest.mark.parametrize(("file", "text", "check", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_breach_is_noticed(
    file: str, text: str, check: str, message: str, tmp_path: Path
) -> None:
    """Put one bad import into an otherwise clean package: the check that should notice does, and
    it is the only one that complains.
    """
    package = tmp_path / "ddice"
    for name, content in CLEAN.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(content)
    assert not any(run(package) for run in CHECKS.values())
    (package / file).parent.mkdir(exist_ok=True)
    (package / file).write_text(text)
    problems = CHECKS[check](package)
    assert len(problems) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(problems[0])


def in_a_new_process(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    ).stdout.strip()


def test_importing_the_package_imports_nothing_heavy() -> None:
    """Not even when every module of it is imported."""
    names = [f"ddice.{name}" for name in modules(PACKAGE) if name not in (ROOT, KERNELS)]
    unwanted = HEAVY | {"scipy", "pandas"}
    code = (
        f"import importlib, sys, ddice\n[importlib.import_module(name) for name in {names}]\n"
        f"print(sorted({unwanted} & set(sys.modules)))"
    )
    assert in_a_new_process(code) == "[]"


@pytest.mark.slow
def test_importing_the_package_takes_little_longer_than_torch() -> None:
    """The one look at the clock, and not in the ordinary run: the best of three, less than 1.5 s
    over torch alone.
    """

    def best(code: str) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            in_a_new_process(code)
            times.append(time.perf_counter() - start)
        return min(times)

    assert best("import torch, ddice") - best("import torch") < 1.5
