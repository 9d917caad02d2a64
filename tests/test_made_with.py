"""With what a run was made: processor, cores, versions, and the command line."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from ddice.core import machine
from ddice.runs.made_with import made_with, record_made_with

PROCESSORS = """\
processor\t: 0
cpu family\t: 6
model\t\t: 207
model name\t: A Processor
{}
processor\t: 1
cpu family\t: 7
model\t\t: 1
model name\t: Another Processor
"""


def test_the_processor_is_the_first_with_its_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "CPU_INFO", path)
    path.write_text(PROCESSORS)
    assert machine.processor() == "A Processor, family 6 model 207"
    path.write_text("processor\t: 0\nmodel name\t: Another\n")
    assert machine.processor() == "Another"
    path.unlink()
    assert machine.processor() == (platform.processor() or platform.machine())


def test_versions_are_those_of_what_is_installed() -> None:
    assert machine.versions(["torch", "no-such-package"]) == {"torch": version("torch")}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no processes")
def test_cores_are_those_that_the_process_may_use() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert machine.cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert machine.cores() == len(before)


def test_a_line_for_each_command_and_none_for_its_repetition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "made_with.jsonl"
    path.write_text("half a li\n")
    for arguments in (["--run", "my runs/a"], ["--run", "my runs/a"], ["--seed", "1"]):
        monkeypatch.setattr(sys, "argv", ["/home/user/bin/ddice", "train", *arguments])
        record_made_with(tmp_path, torch.device("cpu"))
    damaged, first, second = path.read_text().splitlines()
    assert damaged == "half a li"
    about = json.loads(first)
    assert about["command"] == "ddice train --run 'my runs/a'"
    assert json.loads(second)["command"] == "ddice train --seed 1"
    assert about["threads"] == torch.get_num_threads()
    assert about["python"] == platform.python_version()
    assert about["versions"]["ddice"] == version("ddice")
    assert about["name"] == machine.processor()


def test_a_module_that_was_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/user/ddice/cli/__main__.py", "train"])
    monkeypatch.setattr(sys, "orig_argv", ["/home/user/bin/python", "-m", "ddice.cli", "train"])
    assert made_with(torch.device("cpu")).command == "python -m ddice.cli train"
