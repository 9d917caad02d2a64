"""ddice export."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ddice.cli.acting import acting, add_acting_options
from ddice.cli.command import add_command, add_trust
from ddice.policies.export import export
from ddice.policies.policy import load_policy
from ddice.policies.saved import policy_folder


def register(commands: Any) -> None:
    """Add the command."""
    text = (
        "Write a saved policy as policy.onnx with act.py, which runs it without torch, and "
        "parity.json, which says how close it is."
    )
    command = add_command(commands, "export", _export, text)
    command.add_argument("path", help="a run folder, or the folder of a policy")
    command.add_argument(
        "--out", help="folder to write into; by default `export` beside the policy"
    )
    command.add_argument(
        "--batch",
        type=int,
        help=(
            "fixed number of states per call of the model; any number by default, 1 is fastest "
            "for a robot"
        ),
    )
    add_acting_options(command)
    add_trust(command)


def _export(options: argparse.Namespace, rest: list[str]) -> None:
    if options.batch is not None and options.batch < 1:
        raise ValueError(f"expected --batch of at least 1, got {options.batch}")
    folder = policy_folder(options.path)
    out = folder.parent / "export" if options.out is None else Path(options.out)
    policy = acting(load_policy(folder, device="cpu", trust=options.trust), options)
    report = export(policy, out, batch=options.batch)
    print(f"{out / 'policy.onnx'}: {report.bytes / 2**20:.1f} MiB; {report}")
    print(f"run it without torch: python {out / 'act.py'} observations.npy")
