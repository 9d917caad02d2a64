"""Ranks, and how far two sequences agree about them."""

from __future__ import annotations

from torch import Tensor


def ranks(
    values: Tensor,  # (..., N)
) -> Tensor:  # (..., N) float64
    """The rank of each among the N, from 0; ties share the mean of their ranks."""
    mine, other = values.unsqueeze(-1), values.unsqueeze(-2)
    # All that lie below, and half of the others that tie.
    return (mine > other).sum(-1).double() + ((mine == other).sum(-1).double() - 1) / 2


def centred_ranks(
    values: Tensor,  # (..., N)
) -> Tensor:  # (..., N) float64
    """Ranks less their mean, of length 1: the inner product of two is Spearman's correlation. NaN
    where all N are equal.
    """
    found = ranks(values)
    centred: Tensor = found - found.mean(-1, keepdim=True)
    return centred / centred.square().sum(-1, keepdim=True).sqrt()


def rank_correlation(
    first: Tensor,  # (..., N)
    second: Tensor,  # (..., N)
) -> Tensor:  # (...) float64
    """Spearman's rank correlation over the last axis; NaN where one side is constant."""
    return (centred_ranks(first) * centred_ranks(second)).sum(-1)
