"""What a metric tells a person who reads a run: which question it answers, and what a sound run
shows.
"""

from __future__ import annotations

from dataclasses import dataclass

PRIOR = "Does the prior fit?"
RATIOS = "Do the ratios hold?"
CRITIC = "Is the critic sane?"
POLICY = "Does the policy learn?"
PLAY = "How well does it play?"
OTHER = "What else was measured?"
QUESTIONS = (PRIOR, RATIOS, CRITIC, POLICY, PLAY, OTHER)
# of metrics that nobody has described: a part of one's own, a plugin
OF_STAGE = {"prior": PRIOR, "backend": CRITIC, "calibration": RATIOS, "extractor": POLICY}
OF_WATCHER = {"evaluation": PLAY}


@dataclass(frozen=True)
class Reading:
    """The question that a metric answers, what a sound run shows, and its value there where that
    is one number.
    """

    question: str
    sound: str
    expected: float | None = None


READINGS = {
    ("prior", "loss"): Reading(PRIOR, "falls, then is flat"),
    ("backend", "mean_ratio"): Reading(RATIOS, "at the dashed line"),
    ("backend", "effective_sample_size"): Reading(RATIOS, "near 0 few rows count, near 1 all do"),
    ("backend", "flow_balance"): Reading(RATIOS, "mass in equals mass out", 1.0),
    ("backend", "largest_weight"): Reading(RATIOS, "share of one row: small"),
    ("backend", "zero_rate"): Reading(RATIOS, "share of rows that are left out"),
    ("backend", "cut_rate"): Reading(RATIOS, "ratios past the cut: none, or few"),
    ("backend", "temperature"): Reading(RATIOS, "given, or settles"),
    ("backend", "lam"): Reading(RATIOS, "settles"),
    ("backend", "correction_loss"): Reading(RATIOS, "flat at the end"),
    ("backend", "factor_loss"): Reading(RATIOS, "falls, then is flat"),
    ("calibration", "value_error"): Reading(RATIOS, "of the trained V: below 1, it was not needed"),
    ("extractor", "effective_sample_size"): Reading(RATIOS, "as that of the backend"),
    ("extractor", "floor_rate"): Reading(RATIOS, "ratios at the floor: few"),
    ("extractor", "cap_rate"): Reading(RATIOS, "ratios at the cap: few"),
    ("backend", "warm_start_loss"): Reading(CRITIC, "falls"),
    ("backend", "v_loss"): Reading(CRITIC, "flat at the end"),
    ("backend", "q_loss"): Reading(CRITIC, "flat at the end"),
    ("backend", "td_error"): Reading(CRITIC, "flat, small beside the values"),
    ("backend", "discount"): Reading(CRITIC, "taken from the data"),
    ("backend", "value"): Reading(CRITIC, "flat at the end, not running away"),
    ("backend", "selector_loss"): Reading(CRITIC, "falls, then is flat"),
    ("backend", "advantage_clip_rate"): Reading(CRITIC, "few"),
    ("extractor", "loss"): Reading(POLICY, "falls, then is flat"),
    ("extractor", "guidance_deviation"): Reading(POLICY, "leaves 0 where ratios differ"),
    ("extractor", "exponent_cut_rate"): Reading(POLICY, "few"),
    ("evaluation", "score"): Reading(PLAY, "rises, then is flat; few episodes, so it is noisy"),
    ("evaluation", "return"): Reading(PLAY, "as the score"),
    ("evaluation", "length"): Reading(PLAY, "steps of an episode"),
    ("evaluation", "success_rate"): Reading(PLAY, "rises, then is flat"),
    ("evaluation", "seconds"): Reading(PLAY, "what a point of the curve costs"),
}


def part_of(stage: str, name: str) -> tuple[str, str]:
    """(part, metric) of a metric as a metrics file names it: a joint stage writes
    "backend/v_loss".
    """
    part, _, metric = name.partition("/")
    return (part, metric) if stage == "joint" and part in OF_STAGE else (stage, name)


def reading(part: str, name: str) -> Reading:
    """How to read a metric, of a part or of a watcher, as in "evaluation/score"; one that is not
    described is asked with its watcher, or else with its stage.
    """
    watcher, _, metric = name.partition("/")
    question = OF_WATCHER.get(watcher) or OF_STAGE.get(part, OTHER)
    described = READINGS.get((part, name)) or READINGS.get((watcher, metric))
    return described or Reading(question, "")
