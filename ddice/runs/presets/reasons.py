"""Why presets differ: one reason per field, or per group of fields that belong together."""

from __future__ import annotations

REASONS: dict[str, str] = {
    "data": (
        "A task names its D4RL file, to be put into the working directory or given as "
        "--data.source, and the nearest environment of Gymnasium (none fits AntMaze's "
        "observations). Other presets begin with a set that `ddice data make` makes offline."
    ),
    "prior.network": (
        "The published score network has 1.6 million parameters and Fourier features of t. The "
        "default is a small residual network on smooth features of the noise level, which "
        "trains in minutes on a CPU."
    ),
    "prior.prediction": (
        "Published: the network predicts noise, whose error the clean action multiplies by up to "
        "150. That of a velocity (arXiv 2202.00512) is not: after as many steps the actions of a "
        "state are known better."
    ),
    "prior.encoder": (
        "Published networks read raw observations. The default normalises them, so that the "
        "same settings suit data of any scale."
    ),
    "prior.batch_size": (
        "The published batch fills a GPU. A CPU makes more progress with more and smaller steps."
    ),
    "prior.optimizer": (
        "Published: Adam at a small constant rate. A short run wants a larger rate that falls "
        "to 0 at its end."
    ),
    "prior.ema": (
        "Published: the last weights are used. Averaged weights steady the end of a short run."
    ),
    "steps": "The published budget is meant for a GPU. The default takes minutes on a CPU.",
    "schedule": (
        "The published loop updates critic, ensemble and guidance in every step. Trained one "
        "after the other, each part is kept and reused by other extractors, and guidance "
        "learns from ratios that no longer move."
    ),
    "backend.critic.layer_norm": (
        "Published: Q networks without LayerNorm. With it, which is the default, Q stays bounded "
        "off the data, where candidates are ranked (arXiv 2305.09836 has the ablation)."
    ),
    "backend.encoder": (
        "Published networks read raw observations; the default normalises them for every part."
    ),
    "backend.optimizer": "Published: AdamW with weight decay. A short run wants a larger rate.",
    "backend.rewards": (
        "Published: r * 1000 / (max return - min return) for locomotion, and 0 at the goal and "
        "-1 elsewhere for AntMaze. The default takes rewards as they are: the right transform "
        "depends on the task."
    ),
    "backend.selector": (
        "Published: ten more Q networks rank candidates on locomotion, and a critic on AntMaze "
        "(its first; here the mean of both). The default ranks by the critic that is trained "
        "anyway."
    ),
    "backend.temperature": (
        "In reward units, so no number is right for all data. 0.5 is the default of the public "
        "command line, whose value for each task was never published. Set it, or give a target "
        'such as "ess:0.3".'
    ),
    "backend.value_weight": (
        "The public code weighs V with 1, so the mean ratio of every state is 1. The printed "
        "equation has 1 - discount, which forces a mean ratio of 0.01 and adds a large "
        "constant to every value."
    ),
    "extractor.candidates": (
        "1 is the default of the public command line, whose K for each task was never "
        "published. The default lets Q choose among few: a larger K trusts Q further from the "
        "data."
    ),
    "extractor.clip_candidates": (
        "Published: candidates are scored as they come (an action is brought into the bounds "
        "after it is chosen). Far outside of the bounds Q extrapolates, so the default brings "
        "candidates into them first."
    ),
    "extractor.clip_denoised": (
        "Published: the predicted clean actions of a sampling call are not bounded. The "
        "default keeps them in the bounds: that does not change an exact model, while the "
        "errors of a trained one carry few-step, guided samples far outside."
    ),
    "extractor.guidance_scale": (
        "The published code multiplies the guidance gradient by 4 on medium and medium-replay "
        "and 2 on medium-expert, and by 1, 2 and 4 on AntMaze umaze, medium and large. The "
        "theory's factor is 1."
    ),
    "extractor.selection": (
        "Published: the best of the ensemble's mean on locomotion, a sample from the softmax "
        "of Q on AntMaze."
    ),
    "extractor.guidance.network.hidden": (
        "The published guidance network has 0.2 million parameters. A smaller one trains in "
        "minutes on a CPU."
    ),
    "extractor.guidance.network.initialisation": (
        "Published: PyTorch's own. In a short run guidance then can stay at zero without any "
        "sign of it; with Kaiming's it learns."
    ),
    "extractor.guidance.time": (
        "Published: Fourier features of t. Small networks learn guidance sooner from smooth "
        "features of the noise level."
    ),
    "extractor.guidance.optimizer": (
        "Published: AdamW with weight decay, at a small constant rate. A small network in a "
        "short run wants a larger rate that falls to 0 at its end."
    ),
    "extractor.guidance.batch_size": (
        "Published: the batch that all parts share in joint training. Smaller steps are "
        "quicker on a CPU."
    ),
    "extractor.guidance.noises_per_action": (
        "Published: 16 on locomotion, 32 on AntMaze. Fewer noises make a step cheaper and noisier."
    ),
    "extractor.guidance.normalize": (
        "Published: ratios as they are. Divided by their running mean, they change guidance by "
        "a constant only, and the temperature does not change the step size."
    ),
    "extractor.guidance.log_floor": (
        "Published: ratios are clamped to at least 1e-40. The default floors them at e^-10 of "
        "their mean: a row of less weight changes no action, and only pulls guidance ever "
        "further down."
    ),
    "extractor.guidance.log_cap": (
        "Published: ratios are clamped to at most 100. The default has no cap: the tangent of "
        "exponent_cut bounds what a single ratio can do."
    ),
    "extractor.guidance.exponent_cut": (
        "Published: a cut at 80 that only avoids overflow. From 6 on, the default goes on "
        "along the tangent, so that one row cannot dominate a batch."
    ),
    "extractor.guidance.rescale": (
        "The public code divides the loss of a batch by its largest exp(-g): under Adam an "
        "adaptive learning rate, which the paper does not mention. The printed loss and the "
        "default do without."
    ),
    "evaluation.episodes": (
        "Published: 10 episodes on locomotion and 50 on AntMaze. The default plays 100, for "
        "narrower intervals."
    ),
}
"""Dotted name of a field, or of what holds several fields -> why presets give it different
values.
"""


def reason(field: str) -> str:
    """The name in `REASONS` that covers a dotted field. Raises KeyError for a field without a
    reason.
    """
    names = [name for name in REASONS if field == name or field.startswith(f"{name}.")]
    if len(names) != 1:
        raise KeyError(
            f"expected one reason for {field!r} in ddice/runs/presets/reasons.py, found "
            f"{len(names)}"
        )
    return names[0]
