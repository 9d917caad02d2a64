"""Recipe: one frozen tree that names a whole experiment; JSON in, JSON out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from ddice.core.config import Config
from ddice.data import Transitions, load_dataset
from ddice.data.allowed import require_allowed_id
from ddice.dice_backends import AnyBackend, PiecewiseF
from ddice.dice_backends.semi_gradient import PairConfig
from ddice.diffusion.prior import AnyPrior, DiffusionPrior
from ddice.extractors import AnyExtractor, GuideThenSelect
from ddice.policies import evaluation
from ddice.policies.policy import Policy
from ddice.runs.curve import AnyCurve, ExtractorCurve
from ddice.runs.split import Split, hold_out


class DataSource(Config):
    """Which dataset, and how it is looked at; see `ddice.load_dataset`."""

    source: str | tuple[str, ...] = Field(
        "ddice/pointmaze-umaze-v0",
        description=(
            "a Minari id, a .npz (arrays, OGBench or D4RL), a .hdf5 or .h5 (D4RL, robomimic), "
            "a .csv, a folder of LeRobot, or a list of these"
        ),
    )
    goal: Literal["fixed", "observed"] | None = Field(
        None, description="view of goal mazes: one fixed goal, or the goal in the observation"
    )
    action_bounds: Literal["data"] | tuple[float, float] | None = Field(
        None, description='(low, high), or "data" for the extremes of the data'
    )
    out_of_bounds: Literal["error", "clip"] = "error"
    reference_scores: tuple[float, float] | None = Field(
        None, description="(random, expert) returns, in place of the known ones"
    )
    env: str | None = Field(
        None, description="id of the evaluation environment, in place of the recorded one"
    )
    episode_steps: int | None = Field(
        None, ge=1, description="rows per episode, where a file does not say where episodes are cut"
    )
    columns: dict[str, str | tuple[str, ...]] | None = Field(
        None, description="names of a table that are not ours, by ours: columns.actions action"
    )
    fraction: float = Field(1.0, gt=0, le=1, description="share of the episodes that is used")
    fraction_seed: int = 0
    validation: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the episodes that nothing is trained on: alarms look at them",
    )
    validation_seed: int = 0

    def load(self, trust_env: Sequence[str] = ()) -> Transitions:
        """Read the dataset; trust_env: as for `ddice.load_dataset`, and for `env`."""
        require_allowed_id(self.env, trust_env)
        source = list(self.source) if isinstance(self.source, tuple) else self.source
        data = load_dataset(
            source,
            goal=self.goal,
            action_bounds=self.action_bounds,
            out_of_bounds=self.out_of_bounds,
            reference_scores=self.reference_scores,
            env=self.env,
            episode_steps=self.episode_steps,
            columns=self.columns,
            trust_env=trust_env,
        )
        # A subset of everything would describe itself as a part of the data.
        return data if self.fraction == 1 else data.subset(self.fraction, self.fraction_seed)

    def split(self, data: Transitions) -> Split:
        """What was loaded, without the episodes that are held out, and these."""
        return hold_out(data, self.validation, self.validation_seed)


class EvaluationSettings(Config):
    """How a policy is scored."""

    episodes: int = Field(100, ge=0, description="0 trains without evaluating")
    seed: int = 0
    parallel: int = Field(50, ge=1)
    deterministic: bool = False
    every: int | None = Field(
        None,
        ge=1,
        description="steps from one point of the learning curve to the next: the policy is played "
        "while it trains, which changes nothing of it; none unless given",
    )
    curve: AnyCurve = Field(ExtractorCurve(), description="what is played every so many steps")

    @model_validator(mode="after")
    def _check_curve(self) -> Any:
        if self.every is None and self.curve != ExtractorCurve():
            raise ValueError(
                "curve says what is played every so many steps: say how many, evaluation.every"
            )
        if self.every is not None and not self.episodes:
            raise ValueError(
                "every plays while the policy trains, and episodes = 0 trains without playing: "
                "give episodes of at least 1, or leave every out"
            )
        return self

    @property
    def learning_curve(self) -> dict[str, Any] | None:
        """What was asked for of it, as JSON; None for none."""
        if self.every is None:
            return None
        return self.model_dump(mode="json", include={"every", "curve"})

    def evaluate(
        self,
        policy: Policy,
        *,
        progress: bool = True,
        on_step: Callable[[evaluation.Moment], None] | None = None,
        trust_env: Sequence[str] = (),
    ) -> evaluation.Evaluation | None:
        """The scores, or None for 0 episodes; on_step and trust_env as in `ddice.evaluate`."""
        if not self.episodes:
            return None
        return self.play(policy, progress=progress, on_step=on_step, trust_env=trust_env)

    def play(
        self,
        policy: Policy,
        *,
        progress: bool = True,
        on_step: Callable[[evaluation.Moment], None] | None = None,
        trust_env: Sequence[str] = (),
    ) -> evaluation.Evaluation:
        """The scores. Raises ValueError for 0 episodes. Others as in `evaluate`."""
        return evaluation.evaluate(
            policy,
            episodes=self.episodes,
            seed=self.seed,
            parallel=self.parallel,
            deterministic=self.deterministic,
            progress=progress,
            on_step=on_step,
            trust_env=trust_env,
        )


class Steps(Config):
    """Gradient steps of each stage; joint training gives the extractor those of the backend."""

    prior: int = Field(20_000, ge=0)
    backend: int = Field(20_000, ge=0)
    extractor: int = Field(20_000, ge=0)


class Recipe(Config):
    """A whole experiment: data, parts, steps, seed and evaluation."""

    data: DataSource = DataSource()
    prior: AnyPrior = DiffusionPrior()
    backend: AnyBackend = PiecewiseF()
    extractor: AnyExtractor = GuideThenSelect()
    steps: Steps = Steps()
    schedule: Literal["staged", "joint"] = Field(
        "staged", description="backend and extractor one after the other, or together as published"
    )
    seed: int = 0
    device: str = "auto"
    evaluation: EvaluationSettings = EvaluationSettings()
    batch_size: int | None = Field(
        None, ge=1, description="batch size of joint training; the extractor's own by default"
    )

    @model_validator(mode="after")
    def _check(self) -> Any:
        if self.schedule == "joint" and not self.extractor.reads_backend:
            raise ValueError(
                "joint training needs an extractor that learns from the backend: use schedule "
                '"staged" with select_only'
            )
        if self.schedule == "joint" and self._is_calibrated:
            raise ValueError(
                "a backend is calibrated once it is trained, and in joint training it never "
                'stands still: use schedule "staged", or leave backend.calibration out'
            )
        return self

    @property
    def _is_calibrated(self) -> bool:
        return isinstance(self.backend, PairConfig) and self.backend.calibration is not None

    @property
    def needs_prior(self) -> bool:
        """Whether anything reads a prior: the extractor, or the calibration of the backend."""
        return self.extractor.needs_prior or self._is_calibrated

    @property
    def without_curve(self) -> Recipe:
        """The same training and the same scores."""
        settings = self.evaluation.model_copy(update={"every": None, "curve": ExtractorCurve()})
        return self.model_copy(update={"evaluation": settings})
