"""What a saved policy can do otherwise without training: options of the commands that load one."""

from __future__ import annotations

import argparse

from ddice.diffusion.solvers import FEW_STEPS
from ddice.policies.policy import Policy


def add_acting_options(command: argparse.ArgumentParser) -> None:
    """--few-steps, --guidance-scale, --candidates and --noise-scale."""
    steps = (
        f"the solver FEW_STEPS, of {FEW_STEPS.evaluations} evaluations, in place of the policy's"
    )
    command.add_argument(
        "--few-steps", action="store_true", help=f"{steps}: about twice as fast, other actions"
    )
    command.add_argument("--guidance-scale", type=float, help="kappa, in place of the policy's")
    command.add_argument(
        "--candidates",
        type=int,
        help="K, in place of the policy's, more or fewer",
    )
    command.add_argument(
        "--noise-scale",
        type=float,
        help="factor on the noise of candidates: below 1 keeps to the middle of the policy",
    )


def acting(policy: Policy, options: argparse.Namespace) -> Policy:
    """The policy with what the options change."""
    changes = {
        "solver": FEW_STEPS if options.few_steps else None,
        "guidance_scale": options.guidance_scale,
        "candidates": options.candidates,
        "noise_scale": options.noise_scale,
    }
    return (
        policy
        if all(value is None for value in changes.values())
        else policy.with_settings(**changes)
    )
