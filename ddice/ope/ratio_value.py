"""The value of a backend's regularised optimum from its state-action ratios, and whether to
believe it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddice.core.statistics import check_level
from ddice.data import Spec, Transitions
from ddice.ope.intervals import Estimate, Floats, bootstrap, interval
from ddice.parts.ratio_source import RatioSource

OPTIMUM = "the regularised optimum"
ROWS_AT_ONCE = 65_536
Features = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class RatioEstimate:
    """Estimates of one set of ratios. `valid` is False when `reasons` holds any; the numbers are
    given all the same.

    `effective_sample_size` is the share (sum p w)^2 / sum p w^2 over rows in (0, 1];
    `effective_units` the same over episodes (rows, without episodes), as a count. `flow_residual`
    is the root mean square over features phi, each divided by its deviation over the data, of

        (E_D[w (phi(s) - gamma (1 - d) phi(s'))] - (1 - gamma) E_start[phi]) / (1 - gamma)

    with w scaled so that the residual of phi = 1 is 0: how far from the data's starts the flow of
    these ratios begins, in deviations.
    """

    self_normalised: Estimate
    doubly_robust: Estimate | None  # None for a backend without values
    effective_sample_size: float
    effective_units: float
    flow_residual: float
    starts_from: str  # "initial": first observations; "data": all states of the data
    reasons: tuple[str, ...]

    @property
    def valid(self) -> bool:
        """Whether no reason against the estimate was found."""
        return not self.reasons

    def __str__(self) -> str:
        lines = [str(self.self_normalised)] + (
            [str(self.doubly_robust)] if self.doubly_robust else []
        )
        size = (
            f"effective sample size {self.effective_sample_size:.3g}, "
            f"{self.effective_units:.1f} units"
        )
        lines.append(f"{size}; flow residual {self.flow_residual:.3g}")
        return "\n".join(lines + [f"not valid: {reason}" for reason in self.reasons])


def standard_features(spec: Spec) -> Features:
    """The normalised observation and its square, (B, S) -> (B, 2 S): means and spreads of where
    the flow goes.
    """
    mean, std = (
        torch.tensor(x, dtype=torch.float32, device="cpu")
        for x in (spec.normalizer.mean, spec.normalizer.std)
    )

    def features(observations: Tensor) -> Tensor:
        z = (observations - mean.to(observations)) / std.to(observations)
        return torch.cat([z, z.square()], -1)

    return features


@dataclass(frozen=True)
class _Sums:
    """Per row (N, ...) in float64: weight x ratio, the divisor's term, reward, the correction by
    V, features' flow; per start (E0, ...).
    """

    mass: Floats
    stays: Floats  # 1 - gamma (1 - d)
    rewards: Floats
    correction: Floats | None  # gamma (1 - d) V(s') - V(s)
    flow: Floats  # phi(s) - gamma (1 - d) phi(s')
    start_weights: Floats
    start_values: Floats | None
    start_features: Floats
    data_features: Floats
    weights: Floats


def estimate_value(
    backend: RatioSource,
    data: Transitions,
    *,
    discount: float | None = None,
    features: Features | None = None,
    level: float = 0.95,
    repetitions: int = 1000,
    seed: int = 0,
    min_effective_units: float = 20.0,
    max_flow_residual: float = 0.25,
) -> RatioEstimate:
    """The discounted return, from the start, of the policy whose state-action ratios `backend`
    holds: the value of its regularised optimum.

    Self-normalised: sum w r / sum w (1 - gamma (1 - d)). The divisor is (1 - gamma) sum w when
    nothing terminates, and makes the scale of w irrelevant: E_D[w (1 - gamma (1 - d))] = 1 - gamma
    is the Bellman flow summed over states. Doubly robust, where the backend has V: E_start[V] + sum
    w (r + gamma (1 - d) V(s') - V(s)) / sum w (1 - gamma (1 - d)), right when w is, or when V is
    the policy's value; V is brought to raw rewards by the slope of the backend's reward transforms.
    Intervals resample episodes (rows, without episodes).

    Use it on held-out episodes: `train, held_out = data.split(0.8, seed=0)`. It values the policy
    pi proportional to pi_D w, not an extracted one, and ranks temperatures and checkpoints by it;
    for candidates or guidance scales use `FittedQEvaluation`. Raises ValueError for action ratios
    (correct them with `StateCorrection` first), without initial observations, for several seeds at
    once, and when the discount is unknown.
    """
    check_level(level, repetitions)
    _check(backend, data)
    if discount is None:
        discount = backend.discount
    if discount is None:
        raise ValueError(
            "this backend has no discount of its own: give one, estimate_value(..., discount=0.99)"
        )
    starts_from = backend.starts_from
    rows = _collect(backend, data, float(discount), features or standard_features(data.spec))
    # As many starts as episodes: start i is that of episode i, and is drawn with it.
    paired = starts_from == "data" or (
        data.initial_observations is not None
        and len(data.initial_observations) == data.spec.episodes
    )
    units, starts = _by_unit(rows, data, starts_from)

    def self_normalised(unit: Floats, start: Floats) -> float:
        return float(unit[0] / unit[1]) if unit[1] > 0 else float("nan")

    def doubly_robust(unit: Floats, start: Floats) -> float:
        return (
            float(start[1] / start[0] + (unit[0] + unit[2]) / unit[1])
            if unit[1] > 0
            else float("nan")
        )

    estimates = []
    for name, statistic in (("self-normalised", self_normalised), ("doubly robust", doubly_robust)):
        if name == "doubly robust" and rows.correction is None:
            continue
        low, high = interval(bootstrap(units, starts, paired, statistic, repetitions, seed), level)
        estimates.append(Estimate(statistic(units.sum(0), starts.sum(0)), low, high, name, OPTIMUM))
    size, effective_units = _effective(rows.mass, rows.weights), _count(units[:, 3])
    residual = _flow_residual(rows)
    return RatioEstimate(
        self_normalised=estimates[0],
        doubly_robust=estimates[1] if len(estimates) > 1 else None,
        effective_sample_size=size,
        effective_units=effective_units,
        flow_residual=residual,
        starts_from=starts_from,
        reasons=_reasons(
            effective_units,
            residual,
            min_effective_units,
            max_flow_residual,
            "rows" if data.episode is None else "episodes",
        ),
    )


def _check(backend: RatioSource, data: Transitions) -> None:
    if backend.ratio_kind != "state-action":
        raise ValueError(
            f"expected state-action ratios d*/d^D, got {backend.ratio_kind!r} ratios, whose "
            "weighted mean of rewards is no policy's value: correct them first, "
            "StateCorrection().fit(data, backend=backend, steps=...), and estimate with what "
            "it returns"
        )
    if not isinstance(backend.seed, int):
        raise ValueError(
            "several seeds were trained together: estimate each with backend.select(i)"
        )
    if data.initial_observations is None:
        raise ValueError(
            "an estimate needs initial observations: give whole episodes, or the array "
            "`initial_observations`"
        )


@torch.no_grad()
def _collect(backend: RatioSource, data: Transitions, discount: float, features: Features) -> _Sums:
    has_value = backend.has_value
    slope = _reward_slope(backend, data) if has_value else 1.0
    device = backend.device
    parts: dict[str, list[Tensor]] = {
        name: [] for name in ("mass", "stays", "rewards", "correction", "flow", "phi", "value")
    }
    for batch in data.batches(ROWS_AT_ONCE):
        ratio = torch.exp(backend.log_ratio(batch.to(device))).cpu().double()
        batch = batch.to("cpu")
        # gamma (1 - d): a truncated row goes on, because only terminations end the flow.
        goes_on = discount * (~batch.terminations).double()
        phi, following = (
            features(batch.observations).double(),
            features(batch.next_observations).double(),
        )
        parts["mass"].append(batch.weights.double() * ratio)
        parts["stays"].append(1 - goes_on)
        parts["rewards"].append(batch.rewards.double())
        parts["flow"].append(
            phi - torch.where(batch.terminations[:, None], 0.0, discount * following)
        )
        parts["phi"].append(phi)
        if has_value:
            here, after = (
                backend.value(x.to(device)).cpu().double() / slope
                for x in (batch.observations, batch.next_observations)
            )
            parts["value"].append(here)
            parts["correction"].append(
                torch.where(batch.terminations, 0.0, discount * after) - here
            )
    columns = {name: torch.cat(tensors).numpy() for name, tensors in parts.items() if tensors}
    weights = data.weights.cpu().double().numpy()
    assert data.initial_observations is not None
    assert data.initial_weights is not None
    if backend.starts_from == "data":
        start_weights, start_features, start_values = weights, columns["phi"], columns.get("value")
    else:
        start_weights = data.initial_weights.cpu().double().numpy()
        start_features = features(data.initial_observations.cpu()).double().numpy()
        start_values = (
            (backend.value(data.initial_observations.to(device)).cpu().double() / slope).numpy()
            if has_value
            else None
        )
    return _Sums(
        mass=columns["mass"],
        stays=columns["stays"],
        rewards=columns["rewards"],
        correction=columns.get("correction"),
        flow=columns["flow"],
        start_weights=start_weights,
        start_values=start_values,
        start_features=start_features,
        data_features=columns["phi"],
        weights=weights,
    )


def _reward_slope(backend: RatioSource, data: Transitions) -> float:
    """How much the transformed reward grows per unit of the raw one: the regression slope over
    the data; 1 without transforms.
    """
    # A shift needs no undoing: V + c adds to the doubly robust estimate
    # c + sum w (gamma (1 - d) - 1) c / sum w (1 - gamma (1 - d)) = 0.
    raw = data.rewards.cpu().double()
    if float(raw.var(correction=0)) == 0:
        return 1.0
    changed = backend.rewards(data.rewards.cpu()).double()
    slope = float(((raw - raw.mean()) * (changed - changed.mean())).mean() / raw.var(correction=0))
    return slope if slope > 0 else 1.0


def _by_unit(rows: _Sums, data: Transitions, starts_from: str) -> tuple[Floats, Floats]:
    """Sums per episode (per row, without episodes): (mass r, mass stays, mass correction, mass),
    and per start (weight, weight V).
    """
    correction = np.zeros_like(rows.mass) if rows.correction is None else rows.correction
    table = np.stack(
        [rows.mass * rows.rewards, rows.mass * rows.stays, rows.mass * correction, rows.mass], 1
    )
    values = np.zeros_like(rows.start_weights) if rows.start_values is None else rows.start_values
    starts = np.stack([rows.start_weights, rows.start_weights * values], 1)
    if data.episode is None:
        return table, starts
    index = data.episode.cpu().numpy()
    episodes = int(index[-1]) + 1

    def summed(columns: Floats) -> Floats:
        return np.stack([np.bincount(index, column, episodes) for column in columns.T], 1)

    return summed(table), summed(starts) if starts_from == "data" else starts


def _effective(mass: Floats, weights: Floats) -> float:
    # (sum p w)^2 / sum p w^2 with mass = weight w, so that weight w^2 = mass^2 / weight.
    counted = weights > 0
    total = mass.sum()
    return (
        float(total**2 / (weights.sum() * (mass[counted] ** 2 / weights[counted]).sum()))
        if total > 0
        else 0.0
    )


def _count(mass: Floats) -> float:
    # Kish's effective sample size.
    return float(mass.sum() ** 2 / (mass**2).sum()) if mass.sum() > 0 else 0.0


def _flow_residual(rows: _Sums) -> float:
    """See `RatioEstimate`; infinite when all ratios are 0, 0 when no feature varies."""
    divisor = (rows.mass * rows.stays).sum()
    if divisor <= 0:
        return float("inf")
    share = rows.weights / rows.weights.sum()
    spread = np.sqrt(share @ (rows.data_features - share @ rows.data_features) ** 2)
    # A feature that does not vary has no deviation to measure in.
    varies = spread > 1e-6 * max(1.0, float(spread.max(initial=0.0)))
    start = rows.start_weights @ rows.start_features / rows.start_weights.sum()
    # Scaled to sum w (1 - gamma (1 - d)) = 1 - gamma, w makes the first term sum(w flow) / divisor.
    violation = (rows.mass @ rows.flow / divisor - start)[varies] / spread[varies]
    return float(np.sqrt((violation**2).mean())) if len(violation) else 0.0


def _reasons(
    units: float, residual: float, min_units: float, max_residual: float, noun: str
) -> tuple[str, ...]:
    reasons = []
    # Not `<`: NaN is a reason as well.
    if not units >= min_units:
        reasons.append(
            f"the ratios rest on {units:.1f} effective {noun}, fewer than {min_units:g}: raise "
            "the temperature, or use more data"
        )
    if not residual <= max_residual:
        reasons.append(
            f"the flow residual is {residual:.3g}, more than {max_residual:g}: these ratios "
            "are no occupancy from the start; train longer"
        )
    return tuple(reasons)
