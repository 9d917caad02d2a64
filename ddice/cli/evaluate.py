"""ddice evaluate."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ddice.cli.command import add_command
from ddice.config import import_function
from ddice.evaluation import evaluate
from ddice.policy import load_policy
from ddice.storage import write_bytes


def register(commands: Any) -> None:
    """Add the command."""
    command = add_command(commands, "evaluate", _evaluate, "Play a saved policy in its evaluation environment.")
    command.add_argument("path", help="a run folder, or the folder of a policy")
    command.add_argument("--env", help="id of another environment")
    command.add_argument("--episodes", type=int, default=100)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--parallel", type=int, default=50)
    command.add_argument("--device", default="auto")
    command.add_argument("--deterministic", action="store_true", help="fixed latents and argmax")
    command.add_argument("--q", help='"module:function" of the critic, for a policy that selects by a callable of your own')
    command.add_argument("--json", help="write the full result to this file")
    command.add_argument("--no-progress", action="store_true", help="no progress bars")


def _evaluate(options: argparse.Namespace, rest: list[str]) -> None:
    path = Path(options.path)
    critic = None if options.q is None else import_function(options.q, "--q")
    policy = load_policy(path / "policy" if (path / "policy" / "policy.json").exists() else path, device=options.device, q=critic)
    scores = evaluate(
        policy,
        options.env,
        episodes=options.episodes,
        seed=options.seed,
        parallel=options.parallel,
        deterministic=options.deterministic,
        progress=not options.no_progress,
    )
    if options.json:
        write_bytes(Path(options.json), scores.model_dump_json(indent=2).encode())
    print(scores)
