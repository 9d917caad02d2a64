"""ddice evaluate."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from ddice.cli.acting import acting, add_acting_options
from ddice.cli.command import add_command, add_trust, add_trust_env
from ddice.core.config import import_function
from ddice.core.storage import write_bytes
from ddice.pictures import (
    Maze,
    Recorder,
    make_film,
    read_maze,
    trajectories,
    write_gif,
    write_strip,
)
from ddice.pictures.film import FPS, MAX_FRAMES, WIDTH, require_rendering
from ddice.policies.engines import EngineName
from ddice.policies.evaluation import (
    Evaluation,
    Moment,
    PairedEvaluation,
    common_environment,
    evaluate,
    paired,
)
from ddice.policies.policy import Policy, load_policy

SHOWN = {"film": 1, "strip": 3, "trajectories": 50}  # episodes


def register(commands: Any) -> None:
    """Add the command."""
    command = add_command(
        commands, "evaluate", _evaluate, "Play a saved policy in its evaluation environment."
    )
    command.add_argument("path", help="a run folder, or the folder of a policy")
    command.add_argument(
        "other",
        nargs="?",
        help="another one, played from the same starts: the differences, pair by pair, come last",
    )
    command.add_argument("--env", help="id of another environment")
    command.add_argument("--episodes", type=int, default=100)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--parallel", type=int, default=50)
    command.add_argument("--device", default="auto")
    help_engine = (
        "what computes the decisions: the same ones, to rounding; auto is the fastest that is "
        "installed (see docs/fast.md)"
    )
    command.add_argument(
        "--engine", choices=get_args(EngineName), default="reference", help=help_engine
    )
    command.add_argument("--deterministic", action="store_true", help="fixed latents and argmax")
    add_acting_options(command)
    add_trust(command)
    add_trust_env(command)
    command.add_argument(
        "--q",
        help='"module:function" of the critic, for a policy that selects by a callable of your own',
    )
    command.add_argument("--json", help="write the full result to this file")
    command.add_argument(
        "--render",
        metavar="FILE",
        help="film.gif: a film; film.png: a strip of frames, or in goal mazes the trajectories",
    )
    command.add_argument(
        "--render-episodes",
        type=int,
        help=(
            "the first N episodes are shown; by default 1 in a film, 3 in a strip, 50 trajectories"
        ),
    )
    command.add_argument("--render-fps", type=int, default=FPS, help="frames per second of a film")
    command.add_argument(
        "--render-frames",
        type=int,
        default=MAX_FRAMES,
        help="a longer film runs faster, so that it has about this many frames",
    )
    command.add_argument("--render-width", type=int, default=WIDTH, help="pixels at most")
    command.add_argument("--no-progress", action="store_true", help="no progress bars")


def _evaluate(options: argparse.Namespace, rest: list[str]) -> None:
    policy = _policy(options.path, options)
    other = None if options.other is None else _policy(options.other, options)
    env = options.env or policy.spec.env
    if other is not None and options.env is None:
        env = common_environment(policy.spec, other.spec)
    maze = _check_render(options, env)
    shown = 0
    if options.render:
        shown = options.render_episodes or SHOWN[_kind(options.render, maze)]
    recorder = Recorder(shown, options.seed)
    scores = _play(policy, env, options, recorder if shown else None)
    print(scores)
    result: Evaluation | PairedEvaluation = scores
    if other is not None:
        result = paired(scores, _play(other, env, options, None))
        print(result.second)
        print(result)
    if options.json:
        write_bytes(Path(options.json), result.model_dump_json(indent=2).encode())
    if options.render:
        _render(options, env, maze, recorder)
        print(
            f"{_kind(options.render, maze)} of {min(shown, options.episodes)} of them: "
            f"{options.render}"
        )


def _policy(name: str, options: argparse.Namespace) -> Policy:
    """The policy in a folder, acting as the options say."""
    critic = None if options.q is None else import_function(options.q, "--q")
    policy = acting(
        load_policy(name, device=options.device, q=critic, trust=options.trust), options
    )
    if options.engine == "reference":
        return policy
    together = min(options.parallel, options.episodes)
    return policy.compile(options.engine, batch_sizes=(together,))


def _play(
    policy: Policy, env: Any, options: argparse.Namespace, on_step: Callable[[Moment], None] | None
) -> Evaluation:
    return evaluate(
        policy,
        env,
        episodes=options.episodes,
        seed=options.seed,
        parallel=options.parallel,
        deterministic=options.deterministic,
        progress=not options.no_progress,
        on_step=on_step,
        trust_env=options.trust_env,
    )


def _kind(path: str, maze: Maze | None) -> str:
    return "film" if Path(path).suffix == ".gif" else "strip" if maze is None else "trajectories"


def _check_render(options: argparse.Namespace, env: Any) -> Maze | None:
    """The maze, where one is drawn; ValueError or OSError, before anything is played, for what
    cannot be rendered.
    """
    if options.render is None:
        return None
    if Path(options.render).suffix not in (".gif", ".png"):
        raise ValueError(f"expected --render to name a .gif or a .png, got {options.render!r}")
    if options.render_episodes is not None and options.render_episodes < 1:
        raise ValueError(f"expected --render-episodes of at least 1, got {options.render_episodes}")
    if env is None:
        raise ValueError(
            "there is nothing to render: the policy records no environment; give --env"
        )
    if Path(options.render).suffix == ".gif":
        # before anything else imports MuJoCo, which fails at once where MUJOCO_GL names what is
        # not there
        require_rendering(env, options.trust_env)
        return None
    maze = read_maze(env, options.trust_env)
    if maze is None:
        require_rendering(env, options.trust_env)
    return maze


def _render(options: argparse.Namespace, env: Any, maze: Maze | None, recorder: Recorder) -> None:
    """Write the film, the strip or the trajectories of what was played."""
    path, recordings = Path(options.render), recorder.recordings()
    if maze is not None and _kind(options.render, maze) == "trajectories":
        path.parent.mkdir(parents=True, exist_ok=True)
        trajectories(maze, recordings).savefig(path)
        return
    film = make_film(
        env,
        recordings,
        fps=options.render_fps,
        max_frames=options.render_frames,
        width=options.render_width,
        trust_env=options.trust_env,
    )
    (write_gif if path.suffix == ".gif" else write_strip)(film, path)
