"""With what a run was made: a line of JSON for each command, machine and set of versions."""

from __future__ import annotations

import datetime
import json
import platform
import shlex
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ddice.core.machine import cores, device_name, versions
from ddice.core.reading import parse_json, read_bytes
from ddice.core.storage import append_line

FILE = "made_with.jsonl"
PACKAGES = (
    "ddice",
    "torch",
    "numpy",
    "gymnasium",
    "gymnasium-robotics",
    "minari",
    "mujoco",
    "pydantic",
    "safetensors",
)


@dataclass(frozen=True)
class MadeWith:
    """One process in a run folder; `started` is in UTC, `cores` are those that it may use,
    `threads` those of PyTorch.
    """

    started: str
    command: str
    system: str
    device: str
    name: str
    cores: int
    threads: int
    python: str
    versions: dict[str, str]


def made_with(device: torch.device) -> MadeWith:
    """What this process is, and what it computes with."""
    started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return MadeWith(
        started=started,
        command=_command(),
        system=f"{platform.system()} {platform.machine()}",
        device=str(device),
        name=device_name(device),
        cores=cores(),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        versions=versions(PACKAGES),
    )


def _command() -> str:
    """As it was typed, without the folder of the program, which names a user."""
    # `python -m ddice.cli` leaves no more than the path of a file in sys.argv.
    whole = Path(sys.argv[0]).name == "__main__.py"
    program, *arguments = sys.orig_argv if whole else sys.argv
    return shlex.join([Path(program).name, *arguments])


def record_made_with(folder: Path, device: torch.device) -> None:
    """Add this process to `made_with.jsonl` of a run folder, unless the last one there differs
    from it only in when it began. Raises OSError when it cannot be written.
    """
    path, here = folder / FILE, made_with(device)
    lines = read_bytes(path).decode(errors="replace").splitlines() if path.exists() else []
    again = json.dumps(asdict(replace(here, started=_started(lines[-1])))) if lines else ""
    if not lines or lines[-1] != again:
        append_line(path, json.dumps(asdict(here)))


def _started(line: str) -> str:
    """When the process of a line began; "" for a line that cannot be read."""
    try:
        return str(parse_json(line)["started"])
    except (ValueError, TypeError, KeyError):
        return ""
