"""ddice picture."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ddice.cli.command import add_command, add_trust, add_trust_env
from ddice.data import Transitions
from ddice.pictures import Maze, Recording, decision, ratio_map, read_maze, record, trajectories
from ddice.pictures.maze import far_apart, position_columns
from ddice.policies.policy import Policy, load_policy
from ddice.runs.folder import read_recipe
from ddice.runs.recipe import Recipe
from ddice.runs.training import Training

TEXT = """\
Draw what a run has learned, as PNGs: decisions.png (candidates, the chosen action, behaviour and Q;
two-dimensional actions), trajectories.png and ratios.png (goal mazes). What does not apply is left
out, with the reason. Films: ddice evaluate RUN --render out.gif."""
SAMPLED_STATES = 2000  # of the data, from which the drawn ones are picked


def register(commands: Any) -> None:
    """Add the command."""
    command = add_command(commands, "picture", _picture, TEXT)
    command.add_argument(
        "path", help="a run folder, or the folder of a policy (without ratios then)"
    )
    command.add_argument("--out", help="folder for the PNGs; RUN/pictures by default")
    command.add_argument("--episodes", type=int, default=20, help="trajectories that are drawn")
    command.add_argument(
        "--states",
        type=int,
        default=3,
        help="decisions that are drawn, far apart among the states of the episodes or data",
    )
    command.add_argument(
        "--seed",
        type=int,
        default=0,
        help="as for ddice evaluate: the same seed draws the same episodes",
    )
    command.add_argument(
        "--colour", choices=("time", "success"), default="time", help="of the trajectories"
    )
    command.add_argument("--device", default="auto")
    command.add_argument("--no-progress", action="store_true", help="no progress bars")
    add_trust(command)
    add_trust_env(command)


@dataclass
class _Subject:
    """A policy and what can be found around it, each read when a picture asks for it."""

    path: Path
    options: argparse.Namespace
    policy: Policy = field(init=False)
    maze: Maze | None = None
    _data: Transitions | None = None
    _recordings: list[Recording] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.policy = load_policy(self.path, device=self.options.device, trust=self.options.trust)
        if self.policy.spec.env is not None:
            self.maze = read_maze(self.policy.spec.env, self.options.trust_env)

    @property
    def recipe(self) -> Recipe:
        return read_recipe(self.path, self.policy.config.notes, self.options.trust)

    @property
    def data(self) -> Transitions:
        if self._data is None:
            self._data = self.recipe.data.load(self.options.trust_env)
        return self._data

    @property
    def recordings(self) -> list[Recording]:
        options = self.options
        if not self._recordings:
            _, self._recordings = record(
                self.policy,
                episodes=options.episodes,
                seed=options.seed,
                progress=not options.no_progress,
                trust_env=options.trust_env,
            )
        return self._recordings

    def require_maze(self) -> Maze:
        if self.maze is None:
            raise ValueError("it needs a goal maze, such as PointMaze")
        return self.maze

    def decisions(self) -> Any:
        if self.policy.spec.actions.size != 2:
            raise ValueError(
                "it needs 2-dimensional actions, and this policy has "
                f"{self.policy.spec.actions.size}"
            )
        return decision(self.policy, self._states(), maze=self.maze)

    def _states(self) -> Any:
        """States far apart: of those that the policy comes to, else of the data; in a maze by
        position, else by all observed, in deviations.
        """
        spec = self.policy.spec
        if spec.env is None:
            states = (
                self.data.sample(SAMPLED_STATES, seed=self.options.seed, step=0)
                .observations.cpu()
                .numpy()
            )
        else:
            states = np.stack(
                [
                    spec.observations.flatten(one)
                    for recording in self.recordings
                    for one in recording.observations
                ]
            )
        columns = slice(None) if self.maze is None else position_columns(spec)
        return states[
            far_apart((states / np.array(spec.normalizer.std))[:, columns], self.options.states)
        ]

    def trajectories(self) -> Any:
        return trajectories(self.require_maze(), self.recordings, colour=self.options.colour)

    def ratios(self) -> Any:
        maze = self.require_maze()
        training = Training(
            self.recipe, self.data, progress=not self.options.no_progress, only_found=True
        )
        backend = (
            training.backend()
            if self.recipe.schedule == "staged"
            else training.joint(training.prior())[0]
        )
        return ratio_map(backend, training.data, maze)


def _picture(options: argparse.Namespace, rest: list[str]) -> None:
    if options.episodes < 1 or options.states < 1:
        raise ValueError(
            f"expected at least one episode and one state, got --episodes {options.episodes} "
            f"and --states {options.states}"
        )
    path = Path(options.path)
    subject, folder = (
        _Subject(path, options),
        Path(options.out) if options.out else path / "pictures",
    )
    drawn = list(_drawn(subject, folder))
    if not drawn:
        raise ValueError(
            f"nothing here can be drawn; a film may be: ddice evaluate {path} --render film.gif"
        )


def _drawn(subject: _Subject, folder: Path) -> Iterator[Path]:
    """Every picture that applies, written and said; why the others do not."""
    pictures: dict[str, Callable[[], Any]] = {
        "decisions": subject.decisions,
        "trajectories": subject.trajectories,
        "ratios": subject.ratios,
    }
    for name, draw in pictures.items():
        try:
            figure = draw()
        except (ValueError, FileNotFoundError) as error:
            print(f"no {name}.png: {error}")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.png")
        print(folder / f"{name}.png")
        yield folder / f"{name}.png"
