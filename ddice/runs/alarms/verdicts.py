"""When the alarms of a trained stage say that something should be changed, and what."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from ddice.runs.alarms.watching import ACTIONS

Curve = Sequence[tuple[int, float]]  # (step, value), in the order of the steps

# On Hopper the score rose by 20 points while the denoising error fell by 19 %, from 6,000 to 30,000
# steps: a point for each per cent. A fall of 2 % over the last fifth of learning goes on with about
# 3 % per doubling of the steps, which is a gain that five seeds hardly tell from noise.
STILL_FALLS = 0.02
# Same rows, times and noise at every look: an error of averaged weights wobbles by less than this.
RISES = 0.02
# Where the last fifth of learning begins, as a share of the steps: the sum of the learning rates is
# then at 4 / 5. Along a cosine, t / 2 + sin(pi t) / (2 pi) = (4 / 5) / 2; its last steps hardly
# learn, so that a flat end says nothing.
LAST_FIFTH = {"constant": 0.8, "cosine": 0.4822}
# How much higher the best blind action stands above the data's than the best of the prior. On
# Hopper, where selection lost to none, 1.5 to 1.9; on a maze 1.0, the critic's members agreeing.
OFF_THE_DATA = 1.25
# More than half of the states: not the work of a few.
MOST = 0.5
# What two members share is then as large as the error of each.
MEMBERS_AGREE = 0.5
# A temperature of V is a factor of e of all ratios of a state. On Hopper it was off by 4 to 60, and
# weighted BC was below cloning on medium; with V solved in every state it was twice as good.
STATES_DECIDE = 1.0
# By which factor the mean ratio of a batch may differ from what it should be. Of 512 rows with half
# of them effective it is known to 5 %; where V lagged behind Q on Hopper it was 6.
OFF_BALANCE = 2.0
# An average state is valued as the best sixth of them was observed, if returns are normal.
BEYOND_RETURNS = 1.0


def of_prior(training: Curve, held_out: Curve, steps: int, decay: str) -> list[str]:
    """What to do about a prior after `steps` steps, from its denoising errors; held_out is empty
    where no episodes are held out.
    """
    curve = held_out or training
    rows = "on held-out episodes" if held_out else "on the rows that it trains on"
    if held_out:
        best, least = min(held_out, key=lambda point: point[1])
        rise = held_out[-1][1] / least - 1
        if rise > RISES:
            return [
                f"it overfits: its denoising error {rows} was least at step {best:,} and "
                f"has risen by {rise:.1%} since. Stop there (steps.prior={best}), or give it a "
                "smaller network, weight decay or more data"
            ]
    fallen = fall(curve, LAST_FIFTH[decay] * steps)
    if fallen is not None and fallen > STILL_FALLS:
        return [
            "it still learns: over the last fifth of its learning the denoising error "
            f"{rows} fell by {fallen:.1%}. Train it longer (steps.prior above {steps:,}): what "
            "samples from it is not yet the behaviour"
        ]
    return []


def fall(curve: Curve, since: float) -> float | None:
    """By which share the last value lies below that at step `since`, between two points on the line
    through them; None where the curve begins later.
    """
    for (step, value), (later, other) in itertools.pairwise(curve):
        if step <= since <= later:
            then = value + (other - value) * (since - step) / (later - step)
            return 1 - curve[-1][1] / then
    return None


def of_backend(
    numbers: Mapping[str, float], candidates: int, *, calibrated: bool = False
) -> list[str]:
    """What to do about a backend, from its last numbers by their full names; an extractor selects
    among `candidates`. calibrated: whether its ratios get another V and temperature.
    """
    reasons = [_off_the_data(numbers), _members_disagree(numbers)] if candidates > 1 else []
    found = []
    if why := " and ".join(reason for reason in reasons if reason):
        found.append(
            f"selection among {candidates} candidates cannot be trusted: {why}. Set "
            'extractor.candidates=1 or the selection rule "lcb", or give the critic LayerNorm and '
            "more critic_members"
        )
    off = numbers.get("candidates/value_error", 0.0)
    if off > STATES_DECIDE and not calibrated:
        found.append(
            f"V is {off:.1f} temperatures off from where the ratios of a state average what they "
            "should: they prefer states at random more than actions. Let it be solved in every "
            "state (backend.calibration={})"
        )
    mean, expected = (numbers.get(name, 1.0) for name in ("mean_ratio", "mean_ratio_expected"))
    if not calibrated and not expected / OFF_BALANCE <= mean <= expected * OFF_BALANCE:
        found.append(
            f"the mean ratio is {mean:.2g} where it should be {expected:.2g}: V has not found its "
            "place below Q. Give values the size that networks learn soonest (backend.rewards="
            '["unit_values"]), or train longer (steps.backend)'
        )
    bias = numbers.get("alarms/value_bias", 0.0)
    if bias > BEYOND_RETURNS:
        found.append(
            f"V stands {bias:.1f} deviations above the returns that were observed: it has run "
            "ahead of the data. Raise the temperature, take pessimism (reduction "
            '"lower_bound") over more critic_members, or lower the discount'
        )
    return found


def _off_the_data(numbers: Mapping[str, float]) -> str:
    """Why Q is not to be trusted beside the data; empty where nothing speaks against it."""
    blind, share = (
        numbers.get(f"alarms/{name}", 0.0)
        for name in ("uniform_above_data", "uniform_above_data_share")
    )
    of_prior = numbers.get("candidates/prior_above_data", math.inf)
    if share <= MOST or blind <= OFF_THE_DATA * max(of_prior, 0.0):
        return ""
    return (
        f"in {share:.0%} of the states the best of {ACTIONS} blind actions is rated above the "
        f"data's, by {blind:.3f} deviations of Q, and the best of {ACTIONS} of the prior by "
        f"{of_prior:.3f} only"
    )


def _members_disagree(numbers: Mapping[str, float]) -> str:
    """Why the ranking of candidates is noise; empty where it is not, or there is one member."""
    agreement = numbers.get("candidates/member_agreement", math.inf)
    if agreement >= MEMBERS_AGREE:
        return ""
    return f"the critic's members agree in their ranks of candidates by {agreement:.2f} only"
