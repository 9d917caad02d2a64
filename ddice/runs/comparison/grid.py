"""The grid of a comparison: which backends, extractors and seeds meet over which data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ddice.core.config import TRUST, Config
from ddice.core.plugins import EVERY_MODULE
from ddice.dice_backends import AnyBackend
from ddice.extractors import AnyExtractor, SelectOnly
from ddice.extractors.base import DiffusionConfig
from ddice.runs.comparison.datasets import Dataset, by_name
from ddice.runs.comparison.executors import AnyExecutor, Serial
from ddice.runs.recipe import Recipe

BEHAVIOUR = "behaviour policy"


@dataclass(frozen=True)
class Cell:
    """One policy of a comparison. `backend` is None for the behaviour policy, which needs none;
    `dataset` is None where the comparison names none.
    """

    dataset: str | None
    backend: str | None
    extractor: str
    seed: int
    recipe: Recipe

    @property
    def folder(self) -> Path:
        """Its place below the run folder of the comparison."""
        return policy_place(self.dataset, self.backend, self.extractor, self.seed)

    @property
    def name(self) -> str:
        """For people; all seeds have the same."""
        return policy_name(self.dataset, self.backend, self.extractor)

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.name}, seed {self.seed}"


def policy_place(dataset: str | None, backend: str | None, extractor: str, seed: int) -> Path:
    """Where below its run folder a comparison keeps what belongs to one policy."""
    name = extractor if backend is None else f"{backend}-{extractor}"
    place = Path(f"seed-{seed}") / name.replace(" ", "-")
    return place if dataset is None else dataset / place


def policy_name(dataset: str | None, backend: str | None, extractor: str) -> str:
    """What a policy is called, with the dataset where there are several."""
    name = extractor if backend is None else f"{backend} + {extractor}"
    return name if dataset is None else f"{dataset}: {name}"


@dataclass(frozen=True)
class Task:
    """One dataset of a comparison with what is trained on it; no name where there is but one."""

    name: str | None
    recipe: Recipe
    backends: Mapping[str, AnyBackend]
    extractors: Mapping[str, AnyExtractor]


class Comparison(Config):
    """Backends x extractors x seeds on the data, prior, steps and evaluation of one recipe; its
    own backend, extractor and seed are not used. With `datasets`, the same on each of them.
    """

    recipe: Recipe = Recipe()
    datasets: dict[str, Dataset] = Field(
        default_factory=dict,
        description="by name: what is otherwise on each; a list of sources stands for their data",
    )
    backends: dict[str, AnyBackend] = Field(
        default_factory=dict, description="by name; a list of kinds stands for their defaults"
    )
    extractors: dict[str, AnyExtractor] = Field(
        default_factory=dict, description="by name; a list of kinds stands for their defaults"
    )
    pairs: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description=(
            "the extractors of a backend, by their names; a backend that is not named here "
            "meets all"
        ),
    )
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    executor: AnyExecutor = Field(Serial(), description="who trains and plays")

    @field_validator("datasets", mode="before")
    @classmethod
    def _from_sources(cls, value: Any) -> Any:
        return by_name(value)

    @field_validator("backends", "extractors", mode="before")
    @classmethod
    def _from_kinds(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [name.strip() for name in value.split(",") if name.strip()]
        if isinstance(value, Sequence) and not isinstance(value, str):
            return {kind: {"kind": kind} for kind in value}
        if isinstance(value, dict):
            return {
                name: {"kind": name, **item}
                if isinstance(item, dict) and "kind" not in item
                else item
                for name, item in value.items()
            }
        return value

    @field_validator("seeds", mode="before")
    @classmethod
    def _one_seed(cls, value: Any) -> Any:
        return (
            value.split(",")
            if isinstance(value, str)
            else [value]
            if isinstance(value, int)
            else value
        )

    @model_validator(mode="after")
    def _own_parts(self, info: ValidationInfo) -> Any:
        if not self.datasets:  # which may begin with recipes of their own
            backend, extractor = self.recipe.backend, self.recipe.extractor
            if not self.backends:
                object.__setattr__(self, "backends", {backend.kind: backend})
            if not self.extractors:
                object.__setattr__(self, "extractors", {extractor.kind: extractor})
        elif all(one.preset for one in self.datasets.values()) and self.recipe != Recipe():
            raise ValueError(
                "recipe is read by no dataset, because each begins with a preset of its own: give "
                "its fields as datasets.NAME.recipe, or leave a preset out"
            )
        trust = () if info.context is None else info.context.get(TRUST, ())
        for task in self._tasks(trust):
            self._check_names(task)
        return self

    def _tasks(self, trust: Sequence[str]) -> list[Task]:
        return [
            _task(self, name, dataset.recipe_from(self.recipe, name, trust))
            for name, dataset in self.datasets.items()
        ] or [_task(self, None, self.recipe)]

    def _check_names(self, task: Task) -> None:
        """Raise ValueError for a pair of parts that there are not."""
        for backend, extractors in self.pairs.items():
            if unknown := sorted({backend} - set(task.backends)) or sorted(
                set(extractors) - set(task.extractors)
            ):
                known = [*task.backends, *task.extractors]
                raise ValueError(
                    "pairs: expected a backend and its extractors by their names here, got "
                    f"{unknown}; there are {known}"
                )

    @property
    def tasks(self) -> list[Task]:
        """Its datasets, each with its recipe and its parts."""
        # what a file may name was checked when this was read
        return self._tasks((EVERY_MODULE,))

    def of_task(self, task: Task) -> Comparison:
        """The part on one dataset, as a comparison that names none."""
        parts = {"recipe": task.recipe, "backends": task.backends, "extractors": task.extractors}
        return self.model_copy(update={**parts, "datasets": {}})

    def require_episodes(self) -> None:
        """Raise ValueError when nothing is to be played."""
        for task in self.tasks:
            if not task.recipe.evaluation.episodes:
                where = "recipe" if task.name is None else f"datasets.{task.name}.recipe"
                raise ValueError(f"a comparison needs {where}.evaluation.episodes of at least 1")

    def cells(self) -> Iterator[Cell]:
        """Dataset by dataset, the behaviour policy first, then every backend with its extractors;
        seeds innermost.
        """
        for task in self.tasks:
            yield from self._cells_of(task)

    def _cells_of(self, task: Task) -> Iterator[Cell]:
        like = next(
            (e for e in task.extractors.values() if isinstance(e, DiffusionConfig)), SelectOnly()
        )
        imitation = SelectOnly(candidates=1, solver=like.solver, clip_denoised=like.clip_denoised)
        for seed in self.seeds:
            behaviour = {"extractor": imitation, "seed": seed, "schedule": "staged"}
            recipe = task.recipe.model_copy(update=behaviour)
            yield Cell(task.name, None, BEHAVIOUR, seed, recipe)
        for backend_name, backend in task.backends.items():
            for extractor_name in self.pairs.get(backend_name, tuple(task.extractors)):
                extractor = task.extractors[extractor_name]
                for seed in self.seeds:
                    schedule = (
                        task.recipe.schedule if extractor.reads_backend else "staged"
                    )  # nothing to train together with the backend
                    parts = {
                        "backend": backend,
                        "extractor": extractor,
                        "seed": seed,
                        "schedule": schedule,
                    }
                    recipe = task.recipe.model_copy(update=parts)
                    yield Cell(task.name, backend_name, extractor_name, seed, recipe)


def _task(comparison: Comparison, name: str | None, recipe: Recipe) -> Task:
    """The parts of the comparison, else those of the recipe itself."""
    backends = comparison.backends or {recipe.backend.kind: recipe.backend}
    extractors = comparison.extractors or {recipe.extractor.kind: recipe.extractor}
    return Task(name, recipe, backends, extractors)
