"""Other objectives for the same guidance g = log E[w | a_t] + constant, to compare in-sample
guidance learning with. No extractor uses them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def contrastive_loss(weights: Tensor, g: Tensor) -> Tensor:
    """Contrastive energy prediction: -sum_i weights_i log softmax(g)_i over the K actions of the
    last axis (QGPO, arXiv 2304.12824).

    weights (..., K) belong to the clean actions, g (..., K) to their noised versions at one shared
    time. With weights = w the minimiser is log E[w | a_t] plus a constant, whatever K >= 2; with w
    divided by its sum over the K actions, as a softmax of Q / temperature is, only for K ->
    infinity. It needs K actions of the same state: a dataset has one, so the others must be
    generated. Raises ValueError when K < 2.
    """
    if g.shape[-1] < 2:
        raise ValueError(
            "expected at least two actions along the last axis to contrast, got shape "
            f"{tuple(g.shape)}"
        )
    return -(weights * torch.log_softmax(g, -1)).sum(-1)


def regression_loss(ratio: Tensor, g: Tensor) -> Tensor:
    """(exp(g) - w)^2 elementwise: plain regression on w, minimised by g = log E[w | a_t].

    Its curvature in g at the minimum is 2 E[w | a_t]^2, where that of w exp(-g) + g is 1: small
    ratios hardly count, large ones decide everything.
    """
    return (torch.exp(g) - ratio) ** 2
