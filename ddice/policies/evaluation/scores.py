"""What an evaluation gave, and in what units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ddice.core import statistics
from ddice.core.config import Config
from ddice.data.environment import record_of
from ddice.data.memory import memory_of, reward_layers
from ddice.data.scores import bundled_reference, why_not_bundled
from ddice.data.spec import EnvRecord, ReferenceScores, Spec
from ddice.data.tasks import task_of

if TYPE_CHECKING:
    import gymnasium


class Evaluation(Config):
    """What E episodes gave. Every tuple is in the order of the episodes; `model_dump_json` writes
    everything, `model_validate_json` reads it.

    scores: D4RL's convention, 100 (return - random) / (expert - random), or the raw returns when no
    reference scores are known; `label` says which, and whether wrappers changed the rewards.
    successes: whether any step of the episode reported success; final_successes: whether the last
    step did; None where nobody can know, and `success_note` says why. seconds: the whole
    evaluation but for the making of environments; policy_seconds: the part spent in `policy.act`.
    """

    is_measured: ClassVar[bool] = True

    env_id: str | None
    label: str
    reference: ReferenceScores | None
    seed: int
    deterministic: bool
    returns: tuple[float, ...]
    scores: tuple[float, ...]
    lengths: tuple[int, ...]
    successes: tuple[bool, ...] | None
    final_successes: tuple[bool, ...] | None
    success_note: str | None = None
    seconds: float
    policy_seconds: float

    @property
    def mean(self) -> float:
        """The mean score."""
        return statistics.mean(self.scores)

    @property
    def std(self) -> float:
        """The sample standard deviation of the scores over episodes (divisor E - 1); 0 for one
        episode.
        """
        return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else 0.0

    @property
    def iqm(self) -> float:
        """The interquartile mean of the scores."""
        return statistics.iqm(self.scores)

    @property
    def success_rate(self) -> float | None:
        """The share of episodes that reported success at any step; None where nobody can know
        (`success_note`).
        """
        return None if self.successes is None else float(np.mean(self.successes))

    @property
    def decisions_per_second(self) -> float:
        """Actions chosen per second spent in `policy.act`, at the batch sizes that the
        evaluation happened to have.
        """
        return sum(self.lengths) / max(self.policy_seconds, 1e-9)

    def interval(
        self, statistic: statistics.Statistic = statistics.mean, level: float = 0.95
    ) -> tuple[float, float]:
        """The bootstrap interval of a statistic of the scores over episodes: the luck of the
        episodes only, not that of training.
        """
        return statistics.stratified_interval(self.scores, statistic, level=level)

    def __str__(self) -> str:
        low, high = self.interval()
        iqm_low, iqm_high = self.interval(statistics.iqm)
        greedy = ", deterministic" if self.deterministic else ""
        title = self.env_id or "environment"
        lines = [
            f"{title}: {len(self.returns)} episodes, seed {self.seed}{greedy}",
            f"  score   {self.mean:.2f} [{low:.2f}, {high:.2f}], IQM {self.iqm:.2f} "
            f"[{iqm_low:.2f}, {iqm_high:.2f}], std {self.std:.2f}",
            f"          ({self.label}; in brackets 95 % bootstrap intervals over episodes)",
            f"  return  {np.mean(self.returns):.2f}, {min(self.returns):.2f} to "
            f"{max(self.returns):.2f}; length {np.mean(self.lengths):.1f}, "
            f"{min(self.lengths)} to {max(self.lengths)}{self._success()}",
            f"  speed   {self.decisions_per_second:.0f} decisions/s; {sum(self.lengths)} "
            f"steps in {self.seconds:.1f} s",
        ]
        return "\n".join(lines)

    def _success(self) -> str:
        if self.success_rate is not None:
            return f", success {100 * self.success_rate:.0f} %"
        return "" if self.success_note is None else f", success {self.success_note}"


def scores_of(returns: tuple[float, ...], reference: ReferenceScores | None) -> tuple[float, ...]:
    """100 (return - random) / (expert - random); the returns themselves without a reference."""
    if reference is None:
        return returns
    # The normalised score of D4RL (arXiv 2004.07219).
    span = reference.expert - reference.random
    return tuple(100 * (total - reference.random) / span for total in returns)


def units(
    spec: Spec, env: gymnasium.Env[Any, Any]
) -> tuple[str | None, ReferenceScores | None, str]:
    """The id of an environment that was played in, the reference scores that apply there, and the
    words for the units of the scores.
    """
    played = _record(env)
    reference = _reference(spec, played)
    name = None if env.spec is None else env.spec.id
    label = _label(reference, played, name)
    changed, remembered = reward_layers(env), memory_of(env)
    if changed:
        label += f"; rewards as {' and '.join(changed)} changes them"
    if remembered:
        label += f"; the statistics of {' and '.join(remembered)} begin anew in every episode"
    return name, reference, label


def _record(env: gymnasium.Env[Any, Any]) -> EnvRecord | None:
    """What an environment says that it is; None where it does not say all of it."""
    try:
        return record_of(env)
    except ValueError:
        return None


def _reference(spec: Spec, played: EnvRecord | None) -> ReferenceScores | None:
    """Those of the dataset where its task is the one that was played, else the bundled ones."""
    if spec.reference is not None:
        if spec.env is None:
            return spec.reference
        if played is not None and task_of(played) == task_of(spec.env):
            return spec.reference
    return None if played is None else bundled_reference(played)


def _label(reference: ReferenceScores | None, played: EnvRecord | None, name: str | None) -> str:
    if reference is None:
        where = f" for {name}" if name else ""
        why = "" if played is None else why_not_bundled(played)
        return f"raw returns: no reference scores are known{where}{why}"
    own = {"Minari": "Minari's references", "user": "the user's references"}
    owner = own.get(reference.source, reference.source)
    return f"normalised by {owner}, random {reference.random:.6g}, expert {reference.expert:.6g}"
