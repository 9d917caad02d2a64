"""ddice data collect."""

from __future__ import annotations

import argparse
from typing import Any

from ddice.cli.command import add_command, add_trust
from ddice.core.reading import parse_json

TEXT = """\
Record whole episodes of a policy, or of a mixture of policies, in a Gymnasium environment, as a
local Minari dataset. The same command resumes a collection that was stopped, and ends with the same
dataset as one that was not."""
HELP = """\
a POLICY is
  random              uniform actions
  module:function     function(observation, generator) -> action in the environment's units;
                      every random number comes from `generator`, a numpy.random.Generator;
                      a function of a file in this folder is file:function
  runs/umaze          a ddice policy: its folder, or that of its run
  model.zip           a Stable-Baselines3 model, which is unpickled: only with --trust-pickle
POLICY=SHARE, several times, is a mixture: SHAREs are parts of the steps, relative to their sum.

examples:
  ddice data collect my/pendulum-random-v0 --env Pendulum-v1 --policy random --steps 20000
  ddice data collect my/hopper-mixed-v0 --env Hopper-v5 --steps 100000 --noise 0.1 \\
    --policy experts:walk=0.7 --policy random=0.3
  ddice train --data.source my/hopper-mixed-v0

With --noise and --epsilon, an action is uniform with probability EPSILON, else the policy's plus
NOISE x half the width of the bounds x N(0, 1), clipped into the bounds.
docs/collect.md has a policy in ten lines, and says what is recorded."""


def register(actions: Any) -> None:
    """Add `collect` to the actions of `ddice data`."""
    command = add_command(
        actions, "collect", _collect, "Record policies in an environment as a dataset."
    )
    command.description, command.epilog = TEXT, HELP
    command.add_argument("name", help="id of the new dataset: namespace/name-v0")
    command.add_argument(
        "--env",
        required=True,
        help="a Gymnasium id; module:Id imports the module that registers it first",
    )
    command.add_argument(
        "--env-kwargs",
        default="{}",
        metavar="JSON",
        help="""arguments of gymnasium.make: '{"max_episode_steps": 200}'""",
    )
    command.add_argument(
        "--policy",
        action="append",
        required=True,
        metavar="POLICY[=SHARE]",
        help="see below; several are a mixture",
    )
    command.add_argument(
        "--steps", type=int, help="whole episodes until there are as many transitions"
    )
    command.add_argument("--episodes", type=int, help="in place of --steps")
    command.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    command.add_argument(
        "--noise",
        type=float,
        default=0.0,
        help="Gaussian action noise, in half widths of the bounds",
    )
    command.add_argument(
        "--epsilon", type=float, default=0.0, help="probability of a uniform action"
    )
    command.add_argument(
        "--deterministic", action="store_true", help="of ddice policies and Stable-Baselines3's"
    )
    command.add_argument(
        "--reference",
        nargs=2,
        type=float,
        metavar=("RANDOM", "EXPERT"),
        help="returns that score 0 and 100; else the known ones",
    )
    command.add_argument(
        "--trust-pickle",
        action="store_true",
        help="load a .zip although that runs code its author put in",
    )
    add_trust(command)
    command.add_argument("--device", default="auto", help="of ddice policies")
    command.add_argument("--no-progress", action="store_true", help="no progress bars")


def _collect(options: argparse.Namespace, rest: list[str]) -> None:
    from ddice.collection import collect

    made = collect(
        options.name,
        options.env,
        _shares(options.policy),
        steps=options.steps,
        episodes=options.episodes,
        env_kwargs=_kwargs(options.env_kwargs),
        seed=options.seed,
        noise=options.noise,
        epsilon=options.epsilon,
        deterministic=options.deterministic,
        reference=None
        if options.reference is None
        else (options.reference[0], options.reference[1]),
        trust_pickle=options.trust_pickle,
        trust=options.trust,
        device=options.device,
        progress=not options.no_progress,
    )
    print(f"{made} is ready: ddice.load_dataset({made!r}), or ddice train --data.source {made}")


def _kwargs(text: str) -> dict[str, Any]:
    try:
        kwargs = parse_json(text)
    except ValueError as error:
        raise ValueError(f"--env-kwargs {text} is not valid JSON: {error}") from error
    if not isinstance(kwargs, dict):
        raise ValueError(f"--env-kwargs must be a JSON object, got {text}")
    return kwargs


def _shares(policies: list[str]) -> dict[str, float]:
    """NAME=SHARE or NAME, which is a share of 1, for every policy."""
    shares: dict[str, float] = {}
    for text in policies:
        name, equals, share = text.rpartition("=")
        try:
            name, weight = (name, float(share)) if equals else (text, 1.0)
        except ValueError as error:
            raise ValueError(
                f"expected --policy POLICY or POLICY=SHARE with a number, got {text!r}"
            ) from error
        if name in shares:
            raise ValueError(f"--policy {name} is given twice: give it one share")
        shares[name] = weight
    return shares
