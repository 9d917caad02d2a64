"""ddice push and ddice pull."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ddice.cli.command import add_command
from ddice.policies.hub import pull, push


def register(commands: Any) -> None:
    """Add both commands."""
    text = "Send a policy to the Hugging Face hub, with a card of data, protocol, scores, licence."
    sending = add_command(commands, "push", _push, text)
    sending.add_argument("path", help="a run folder, or the folder of a policy")
    sending.add_argument("repo", help="name/of-the-policy")
    sending.add_argument("--licence", required=True, help="of the policy, such as mit")
    sending.add_argument(
        "--public", action="store_true", help="make a repository for everybody; else it is private"
    )
    sending.add_argument("--revision", help="a branch that is there")

    text = "Fetch a policy from the Hugging Face hub; no code of it is run."
    fetching = add_command(commands, "pull", _pull, text)
    fetching.add_argument("repo", help="name/of-the-policy")
    fetching.add_argument("folder", nargs="?", help="by default that of the policy's name")
    fetching.add_argument("--revision", help="a branch, a tag or a commit")
    fetching.add_argument("--digest", help="the SHA-256 that the file must have, as push said it")


def _push(options: argparse.Namespace, rest: list[str]) -> None:
    sent = push(
        options.path,
        options.repo,
        licence=options.licence,
        public=options.public,
        revision=options.revision,
    )
    print(sent.url)
    print(f"fetch it: ddice pull {options.repo} --digest {sent.digest}")


def _pull(options: argparse.Namespace, rest: list[str]) -> None:
    folder = options.folder or options.repo.rpartition("/")[2]
    if not folder:
        raise ValueError(f"expected name/of-the-policy, got {options.repo!r}")
    there = pull(options.repo, Path(folder), revision=options.revision, digest=options.digest)
    print(f"policy: {there} (ddice evaluate {there}, or ddice.load_policy({str(there)!r}))")
