"""What may be wrong with a dataset: findings, each with what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ddice.core.config import Config
from ddice.data.description import Description
from ddice.data.measures import CHUNK
from ddice.data.transitions import Transitions
from ddice.data.trial import try_environment

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

# share of equal rows that is worth a word: float32 transitions of a real system hardly ever repeat
DUPLICATES = 0.01
AT_THE_LIMIT = 0.5  # share of the terminations that lie on one and the same last step
RARE = 0.01  # share of rows with another reward than the least, under which rewards are sparse
SHORT = 0.05  # share of episodes of one step
SATURATION = 0.9  # share of the steps with an action at a bound
NARROW = 0.1  # share of the action range that is used
OUTLIER = 50.0  # deviations from the mean of an observation
LARGE, SMALL = (
    1e3,
    1e-3,
)  # deviation of rewards that default learning rates and temperatures do not suit
DIGITS = 100  # steps of float32 in a deviation, below which rounding is more than a percent of it
SHOWN = 8  # dimensions named in a message


class Finding(Config):
    """One thing that was found, and what to do about it. error: nothing good can be learned;
    warning: probably a mistake; note: good to know.
    """

    severity: Severity
    name: str
    message: str
    advice: str


def check(data: Transitions, *, trust_env: Sequence[str] = ()) -> tuple[Finding, ...]:
    """All findings, errors first. What `load_dataset` refuses is not looked for again. trust_env:
    as for `load_dataset`; the recorded environment is made.
    """
    data, description = data.to("cpu"), data.describe()
    found = [finding for look in CHECKS for finding in look(data, description)]
    if description.env is not None:
        found += environment(data, trust_env)
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))


def unreadable(error: Exception) -> Finding:
    """What loading refused, as a finding."""
    return Finding(
        severity="error",
        name="unreadable",
        message=str(error),
        advice="mend this first: nothing else could be looked at",
    )


def rewards(data: Transitions, description: Description) -> Iterator[Finding]:
    """Rewards that tell nothing, or whose scale needs care."""
    values = data.rewards.double()
    low, high, deviation = float(values.min()), float(values.max()), float(values.std(correction=0))
    if low == high:
        yield Finding(
            severity="error",
            name="constant-rewards",
            message=f"all {len(data):,} rewards are {low:g}",
            advice=(
                "no action is better than another: check the column, or the goal that rewards "
                "are computed for"
            ),
        )
        return
    if not SMALL <= deviation <= LARGE:
        yield Finding(
            severity="warning",
            name="reward-scale",
            message=f"rewards have a deviation of {deviation:.3g} (from {low:.3g} to {high:.3g})",
            advice=(
                "temperatures are in reward units: scale rewards with the transform "
                '"standardize" or "scale", and aim at a size with "ess:0.3"'
            ),
        )
    other = int((values != low).sum())
    if other < RARE * len(data):
        yield Finding(
            severity="note",
            name="sparse-rewards",
            message=f"only {other:,} of {len(data):,} rewards differ from {low:g}",
            advice=(
                "values spread slowly from few rewards: use warm_start_steps, and watch value "
                "beside the returns of the data"
            ),
        )
    if data.totals is not None and description.episodes > 1:
        returns = data.totals.returns
        if np.ptp(returns) <= 1e-6 * np.abs(returns).max():
            yield Finding(
                severity="warning",
                name="equal-returns",
                message=f"all {description.episodes:,} episodes have the return {returns[0]:.4g}",
                advice=(
                    "nothing says which episode is better: check where episodes are cut, and "
                    "the rewards"
                ),
            )


def ends(data: Transitions, description: Description) -> Iterator[Finding]:
    """Terminations and truncations that look swapped, missing, or in the wrong place."""
    if data.episode is None:
        return
    lengths = np.bincount(data.episode.numpy())
    last = np.cumsum(lengths) - 1
    terminated = data.terminations.numpy()[last]
    known = None if data.spec.env is None else data.spec.env.time_limit
    limit = int(lengths.max()) if known is None else known
    at_limit = int((terminated & (lengths == limit)).sum())
    if limit > 1 and at_limit > 1 and at_limit > AT_THE_LIMIT * terminated.sum():
        whose = "the longest episode" if known is None else f"the time limit of {data.spec.env.id}"  # type: ignore[union-attr]
        yield Finding(
            severity="warning",
            name="timeout-terminations",
            message=(
                f"{at_limit:,} of {int(terminated.sum()):,} terminated episodes end exactly "
                f"after {limit:,} steps, as long as {whose}"
            ),
            advice=(
                "likely mislabelled truncations: give them as truncations (timeouts), or the "
                "critic learns that time kills"
            ),
        )
    if description.episodes == 1 and len(data) > 1000:
        yield Finding(
            severity="warning",
            name="one-episode",
            message=f"all {len(data):,} rows are one episode",
            advice=(
                "give terminations and truncations, or episode_ids, or cut with episode_steps: "
                "resets inside an episode are false transitions"
            ),
        )
    single = int((lengths == 1).sum())
    if lengths.max() > 1 and single > SHORT * len(lengths):
        yield Finding(
            severity="warning",
            name="short-episodes",
            message=f"{single:,} of {len(lengths):,} episodes have one step",
            advice=(
                "flags shifted by one row look like this: the last row of an episode is the "
                "one that terminates or truncates"
            ),
        )
    follows = data.episode[1:] == data.episode[:-1]
    broken = (
        follows
        & ~data.terminations[:-1]
        & (data.next_observations[:-1] != data.observations[1:]).any(-1)
    )
    if bool(broken.any()):
        row = int(data.rows[:-1][broken][0])
        yield Finding(
            severity="warning",
            name="broken-chain",
            message=(
                f"{int(broken.sum()):,} next observations are not the observation of the next "
                f"row of their episode, first in row {row}"
            ),
            advice=(
                "rows out of order, or episodes that are not cut where they end: sort the "
                "rows, or give the ends"
            ),
        )


def actions(data: Transitions, description: Description) -> Iterator[Finding]:
    """Actions that never move, sit at their bounds, or use little of the range."""
    low, high = data.actions.amin(0), data.actions.amax(0)
    constant = (low == high).nonzero()[:, 0].tolist()
    if constant:
        yield Finding(
            severity="warning",
            name="constant-actions",
            message=f"action dimensions {_some(constant)} never change",
            advice=(
                "leave them out, and add them to what the policy gives: no ratio can say "
                "anything about them"
            ),
        )
    narrow = [i for i in ((high - low) < 2 * NARROW).nonzero()[:, 0].tolist() if i not in constant]
    if narrow:
        yield Finding(
            severity="warning",
            name="narrow-actions",
            message=(
                f"action dimensions {_some(narrow)} use less than {NARROW:.0%} of the range "
                "between their bounds"
            ),
            advice='check units and bounds: action_bounds="data" takes the extremes of the data',
        )
    saturated = [
        i
        for i, share in enumerate(description.action_saturation)
        if share > SATURATION and i not in constant
    ]
    if saturated:
        yield Finding(
            severity="warning",
            name="saturated-actions",
            message=(
                f"action dimensions {_some(saturated)} are at a bound in more than "
                f"{SATURATION:.0%} of the steps"
            ),
            advice=(
                "were actions clipped to bounds that are too narrow? A policy that is truly "
                "bang-bang is fine"
            ),
        )


def observations(data: Transitions, description: Description) -> Iterator[Finding]:
    """Observations that never change, or hold glitches."""
    constant = list(description.constant_observations)
    if constant:
        yield Finding(
            severity="note",
            name="constant-observations",
            message=f"observation dimensions {_some(constant)} never change",
            advice="harmless, but a policy cannot know what it does where they change",
        )
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device="cpu")
        for values in (data.spec.normalizer.mean, data.spec.normalizer.std)
    )
    far = torch.stack(
        [((part - mean) / std).abs().amax(0) for part in torch.split(data.observations, CHUNK)]
    ).amax(0)
    drowned = drowned_columns(data)
    if drowned:
        yield Finding(
            severity="warning",
            name="drowned-observations",
            message=(
                f"observation dimensions {_some(drowned)} vary by less than {DIGITS} steps of "
                "float32 at their size: rounding drowns what they say"
            ),
            advice=(
                "subtract an offset before saving, here and in the environment: times from the "
                "start of the episode, positions from a near origin"
            ),
        )
    outlying = (far > OUTLIER).nonzero()[:, 0].tolist()
    if outlying:
        yield Finding(
            severity="warning",
            name="observation-outliers",
            message=(
                f"observation dimensions {_some(outlying)} lie up to {float(far.max()):.0f} "
                "deviations from their mean"
            ),
            advice=(
                "a sensor's error code or a broken file looks like this: it squeezes all other "
                "rows together; clip or remove such rows"
            ),
        )


def drowned_columns(data: Transitions) -> list[int]:
    """Dimensions that vary, but by little beside the steps of float32 at their largest value."""
    observations = data.observations.numpy()
    largest = np.abs(observations).max(0)
    deviation = observations.std(0, dtype=np.float64)
    drowns = (deviation > 0) & (deviation < DIGITS * np.spacing(largest))
    return [int(column) for column in np.flatnonzero(drowns)]


def duplicates(data: Transitions, description: Description) -> Iterator[Finding]:
    """Rows and whole episodes that are there more than once."""
    hashes = row_hashes(data)
    repeated = len(hashes) - len(np.unique(hashes))
    if repeated > DUPLICATES * len(hashes):
        yield Finding(
            severity="warning",
            name="duplicate-rows",
            message=f"{repeated:,} of {len(hashes):,} rows are equal to an earlier one",
            advice=(
                "files that were joined twice look like this, and count twice in every loss; "
                "only discrete states and actions repeat by nature"
            ),
        )
    if data.episode is None or description.episodes < 2:
        return
    lengths = np.bincount(data.episode.numpy())
    starts = np.cumsum(lengths) - lengths
    place = np.arange(len(hashes)) - np.repeat(starts, lengths)
    codes = np.add.reduceat(hashes * (2 * place.astype(np.uint64) + np.uint64(1)), starts)
    again = len(codes) - len(np.unique(codes))
    if again:
        yield Finding(
            severity="warning",
            name="duplicate-episodes",
            message=f"{again:,} of {len(codes):,} episodes are copies of another one",
            advice=(
                "remove them: copies on both sides of a split make held-out estimates look "
                "better than they are"
            ),
        )


def reading(data: Transitions, description: Description) -> Iterator[Finding]:
    """What reading the source cost, and what an evaluation will lack."""
    if description.dropped_rows:
        yield Finding(
            severity="note",
            name="dropped-rows",
            message=(
                f"{description.dropped_rows:,} rows were dropped: nobody wrote down what came "
                "after them"
            ),
            advice="give next_observations to keep them",
        )
    if description.unpaid_episodes:
        yield Finding(
            severity="warning",
            name="dropped-rewards",
            message=(
                f"the dropped rows hold the only reward of {description.unpaid_episodes:,} of "
                f"{description.episodes:,} episodes"
            ),
            advice="training never sees these rewards: give next_observations to keep the rows",
        )
    if description.clipped_rows:
        yield Finding(
            severity="note",
            name="clipped-actions",
            message=(
                f"the actions of {description.clipped_rows:,} rows were brought inside their bounds"
            ),
            advice='check the bounds; action_bounds="data" changes no action',
        )
    if description.env is None:
        yield Finding(
            severity="note",
            name="no-environment",
            message="no environment is recorded",
            advice="give env= to evaluate, or estimate with ddice.ope",
        )
        return
    if description.reference is None:
        yield Finding(
            severity="note",
            name="no-reference-scores",
            message=f"no reference scores are known for {description.env}",
            advice=(
                "returns are reported raw: give reference_scores=(random, expert) to normalise them"
            ),
        )


def environment(data: Transitions, trust_env: Sequence[str] = ()) -> Iterator[Finding]:
    """What is wrong with the recorded environment, which is made for that."""
    try:
        remarks = try_environment(data.spec, trust_env)
    except (ImportError, ValueError) as error:
        yield Finding(
            severity="error",
            name="unusable-environment",
            message=str(error),
            advice="give env= to evaluate, or train with --evaluation.episodes=0",
        )
        return
    for remark in remarks:
        what, _, advice = remark.partition(": ")
        yield Finding(severity="warning", name="environment", message=what, advice=advice)


CHECKS: tuple[Callable[[Transitions, Description], Iterator[Finding]], ...] = (
    rewards, ends, actions, observations, duplicates, reading,
)  # fmt: skip


def row_hashes(data: Transitions) -> NDArray[np.uint64]:
    """A 64-bit number for each row's observation, action, reward and termination: equal rows,
    equal numbers.
    """
    columns = [
        data.observations,
        data.actions,
        data.rewards[:, None],
        data.terminations[:, None].float(),
    ]
    width = sum(column.shape[1] for column in columns)
    odd = np.random.default_rng(0).integers(0, 1 << 63, size=width, dtype=np.uint64) * np.uint64(
        2
    ) + np.uint64(1)
    hashes = np.empty(len(data), np.uint64)
    for start in range(0, len(data), CHUNK):
        part = (
            torch.cat([column[start : start + CHUNK] for column in columns], 1) + 0.0
        )  # -0.0 is 0.0
        bits = part.numpy().view(np.uint32).astype(np.uint64) + np.uint64(1)
        bits ^= bits << np.uint64(
            29
        )  # a product alone would keep the low bits of floats, which are mostly zero, together
        hashes[start : start + CHUNK] = ((bits * odd) ^ ((bits * odd) >> np.uint64(32))).sum(
            1, dtype=np.uint64
        )
    return hashes


def _some(dimensions: list[int]) -> str:
    return ", ".join(map(str, dimensions[:SHOWN])) + (
        f" and {len(dimensions) - SHOWN} more" if len(dimensions) > SHOWN else ""
    )
