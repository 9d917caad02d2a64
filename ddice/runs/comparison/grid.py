"""The grid of a comparison: which backends, extractors and seeds meet over one prior."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from ddice.core.config import Config
from ddice.dice_backends import AnyBackend
from ddice.extractors import AnyExtractor, SelectOnly
from ddice.extractors.base import DiffusionConfig
from ddice.runs.recipe import Recipe

BEHAVIOUR = "behaviour policy"


@dataclass(frozen=True)
class Cell:
    """One policy of a comparison. `backend` is None for the behaviour policy, which needs none."""

    backend: str | None
    extractor: str
    seed: int
    recipe: Recipe

    @property
    def folder(self) -> Path:
        """Its place below the run folder of the comparison."""
        return policy_place(self.backend, self.extractor, self.seed)


def policy_place(backend: str | None, extractor: str, seed: int) -> Path:
    """Where below its run folder a comparison keeps what belongs to one policy."""
    name = extractor if backend is None else f"{backend}-{extractor}"
    return Path(f"seed-{seed}") / name.replace(" ", "-")


class Comparison(Config):
    """Backends x extractors x seeds on the data, prior, steps and evaluation of one recipe; its
    own backend, extractor and seed are not used.
    """

    recipe: Recipe = Recipe()
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
    def _own_parts(self) -> Any:
        if not self.backends:
            object.__setattr__(self, "backends", {self.recipe.backend.kind: self.recipe.backend})
        if not self.extractors:
            object.__setattr__(
                self, "extractors", {self.recipe.extractor.kind: self.recipe.extractor}
            )
        for backend, extractors in self.pairs.items():
            if unknown := sorted({backend} - set(self.backends)) or sorted(
                set(extractors) - set(self.extractors)
            ):
                known = [*self.backends, *self.extractors]
                raise ValueError(
                    "pairs: expected a backend and its extractors by their names here, got "
                    f"{unknown}; there are {known}"
                )
        return self

    def require_episodes(self) -> None:
        """Raise ValueError when nothing is to be played."""
        if not self.recipe.evaluation.episodes:
            raise ValueError("a comparison needs recipe.evaluation.episodes of at least 1")

    def cells(self) -> Iterator[Cell]:
        """The behaviour policy first, then every backend with its extractors; seeds innermost."""
        like = next(
            (e for e in self.extractors.values() if isinstance(e, DiffusionConfig)), SelectOnly()
        )
        imitation = SelectOnly(candidates=1, solver=like.solver, clip_denoised=like.clip_denoised)
        for seed in self.seeds:
            behaviour = {"extractor": imitation, "seed": seed, "schedule": "staged"}
            yield Cell(None, BEHAVIOUR, seed, self.recipe.model_copy(update=behaviour))
        for backend_name, backend in self.backends.items():
            for extractor_name in self.pairs.get(backend_name, tuple(self.extractors)):
                extractor = self.extractors[extractor_name]
                for seed in self.seeds:
                    schedule = (
                        self.recipe.schedule if extractor.reads_backend else "staged"
                    )  # nothing to train together with the backend
                    parts = {
                        "backend": backend,
                        "extractor": extractor,
                        "seed": seed,
                        "schedule": schedule,
                    }
                    yield Cell(
                        backend_name, extractor_name, seed, self.recipe.model_copy(update=parts)
                    )
