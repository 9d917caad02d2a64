"""What is reported of distribution ratios, whichever backend made them."""

from __future__ import annotations

import torch
from torch import Tensor

from ddice.parts.part import effective_sample_size, weighted_mean


def ratio_metrics(log_ratio: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Diagnostics of ratios (*seeds, B): mean, effective sample size, share of zeros, largest
    share that one row has of all weight.
    """
    ratio = torch.exp(log_ratio)
    mean = weighted_mean(ratio, weights)
    return {
        "mean_ratio": mean,
        "effective_sample_size": effective_sample_size(log_ratio, weights),
        "zero_rate": weighted_mean((log_ratio == -torch.inf).to(weights.dtype), weights),
        # max_i p_i w_i / sum_i p_i w_i; the floor avoids 0 / 0 where all ratios are zero.
        "largest_weight": (weights * ratio).amax(-1) / (weights.sum(-1) * mean).clamp(min=1e-30),
    }
