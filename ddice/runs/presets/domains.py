"""The presets by domain: every value that differs from the default stands here, once, with its
reason and its source. Nothing else has to change with a value.
"""

from __future__ import annotations

from ddice.runs.presets.choices import Choice

REBRAC = "ReBRAC, arXiv 2305.09836, ablations over four seeds"
HOPPER = "measured here on regenerated Hopper sets, docs/which.md and docs/check.md"
CALIBRATED = "measured here, the tables of three Hopper sets, docs/which.md"
PROBES = "measured here on regenerated Hopper sets, one or two seeds, docs/which.md"
DOOR = "measured here on the 25 demonstrations of door, docs/which.md"
TIME = "measured here: 20 to 45 minutes on a busy machine with two CPU cores"

_BUDGET = (
    Choice(
        field="steps",
        value={"prior": 30_000, "backend": 30_000, "extractor": 30_000},
        reason=(
            "A critic that sees further needs more steps than the default gives. More are better "
            "while the curves still move."
        ),
        source=TIME,
    ),
    Choice(
        field="backend.temperature",
        value="ess:0.5",
        reason=(
            "A number would be in reward units, and right for one set. Half of the data is kept: "
            "targets between 0.3 and 0.6 score alike, and below that weights follow the errors "
            "of the critic."
        ),
        source=HOPPER,
    ),
)

LOCOMOTION = (
    Choice(
        field="steps",
        value={"prior": 25_000, "backend": 12_000, "extractor": 20_000},
        reason=(
            "Those of the tables. A critic of more steps, or of a larger rate, scored no better; "
            "prior and extractor still gain from more."
        ),
        source=CALIBRATED,
    ),
    Choice(
        field="backend.temperature",
        value="ess:0.3",
        reason=(
            "A number would be in reward units, and right for one set. Where a sixth of the data "
            "is good, half of this is better."
        ),
        source=CALIBRATED,
    ),
    Choice(
        field="backend.discount",
        value="horizon",
        reason=(
            "Good policies differ from poor ones in how often they fall: at 0.99 that is a tenth "
            "of a value, below the error of a critic. On a mixture of a medium and an expert "
            "policy one seed scored 51 at 0.998, with 40,000 steps, and 16 to 20 at 0.99."
        ),
        source=HOPPER,
    ),
    Choice(
        field="backend.backup",
        value={"kind": "lambda_returns", "lam": 0.95},
        reason=(
            "What an action leads to shows in the rows behind it: targets that follow the episode "
            "for twenty rows resolve differences that a one-step target leaves to the critic."
        ),
        source=PROBES,
    ),
    Choice(
        field="backend.warm_start_steps",
        value=2000,
        reason="With a long horizon V rises slowly by bootstrapping; returns give it at once.",
        source=PROBES,
    ),
    Choice(
        field="backend.rewards",
        value=[{"kind": "unit_values"}, {"kind": "scale", "factor": 50.0}],
        reason=(
            "Values near 30 whatever the rewards are. In the hundreds V lags behind Q at this "
            "rate: ratios averaged 2.7 to 6 in place of 1."
        ),
        source=PROBES,
    ),
    Choice(
        field="backend.optimizer",
        value={"learning_rate": 1e-4, "decay": "cosine"},
        reason="At 1e-3 the ratios of the same critic scored below cloning.",
        source=PROBES,
    ),
    Choice(
        field="backend.calibration",
        value={"actions": 8},
        reason=(
            "A network V is off by more than actions differ by in Q: by 4 to 60 temperatures. "
            "Ratios then prefer states at random. Solved in every state, they prefer actions."
        ),
        source=CALIBRATED,
    ),
    Choice(
        field="extractor",
        value={"kind": "guide_then_select", "candidates": 1, "noise_scale": 0.5},
        reason=(
            "Half of the noise: that of the policies that made the data makes them fall. Guidance "
            "is first or within the noise of it on all three sets, far ahead of cloning; weighted "
            "BC costs less and fails on the set of which a sixth is good."
        ),
        source=CALIBRATED,
    ),
)

MAZE = (
    *_BUDGET,
    Choice(
        field="backend.discount",
        value="horizon",
        reason=(
            "A reward at the end of a long path must still count where the path begins: on "
            "AntMaze 0.99 in place of 0.999 costs 54 of 75 points."
        ),
        source=REBRAC,
    ),
    Choice(
        field="backend.critic.hidden",
        value=[256, 256, 256],
        reason="On AntMaze two hidden layers in place of three cost 57 of 75 points.",
        source=REBRAC,
    ),
    Choice(
        field="backend.batch_size",
        value=256,
        reason="Large batches hurt on AntMaze: 41 points in place of 75.",
        source=REBRAC,
    ),
    Choice(
        field="backend.optimizer.learning_rate",
        value=3e-4,
        reason=(
            "A batch of 256 wants a smaller rate; the published one for AntMaze, 5e-5, is meant "
            "for a million steps."
        ),
        source=REBRAC,
    ),
)

DEXTEROUS = (
    *_BUDGET,
    Choice(
        field="backend.batch_size",
        value=256,
        reason=(
            "Few rows: large batches see each of them too often. On human demonstrations of pen "
            "a batch of 1024 scores 67, one of 256 scores 102."
        ),
        source=REBRAC,
    ),
    Choice(
        field="backend.optimizer.learning_rate",
        value=3e-4,
        reason="Published with the batch of 256 for the tasks of the dexterous hand.",
        source=REBRAC,
    ),
    Choice(
        field="extractor.candidates",
        value=1,
        reason=(
            "With few rows in many dimensions Q cannot rank: two seeds order the same candidates "
            "with a correlation of 0.43. One candidate asks it nothing."
        ),
        source=DOOR,
    ),
)

DOMAINS: dict[str, tuple[Choice, ...]] = {
    "locomotion": LOCOMOTION,
    "maze": MAZE,
    "dexterous": DEXTEROUS,
}
ABOUT = {
    "locomotion": "rewards in every step, until a fall or for long: walking, running, balancing",
    "maze": "rewards that few rows have, at the end of a path",
    "dexterous": "few rows for many action dimensions, such as demonstrations of a hand",
}
