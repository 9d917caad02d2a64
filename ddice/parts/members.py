"""The members of a critic as one number: what candidates are ranked by, and what values are learned
from.
"""

from __future__ import annotations

from torch import Tensor


def minimum(
    q: Tensor,  # (..., M, ...)
    axis: int,
) -> Tensor:
    """min over members, without their axis."""
    # Clipped double Q (arXiv 1802.09477): an action is as good as its most doubtful member says.
    return q.amin(axis)


def lower_bound(
    q: Tensor,  # (..., M, ...)
    deviations: float,
    axis: int,
) -> Tensor:
    """mean - deviations * sample deviation over members, sqrt(sum (q - mean)^2 / (M - 1)), without
    their axis.

    Two members and 1 / sqrt(2) are the minimum: the sample deviation of two numbers is their
    distance / sqrt(2), and half the distance below the mean is the smaller one. No deviations are
    the mean, of one member too; NaN for any deviations of one member.
    """
    mean = q.mean(axis)
    return mean - deviations * q.std(axis, correction=1) if deviations else mean
