"""The ratios of a source that stays as it is while others train: of every row once."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ddice.data import Batch, Transitions
from ddice.parts.ratio_source import RatioSource


class TabulatedRatios:
    """A source whose ratios are computed once for each row of `data`, when they are first asked
    for, and then looked up. All else is the source's.
    """

    def __init__(
        self, source: RatioSource, data: Transitions, batch_size: int, seed_shape: tuple[int, ...]
    ):
        self._source = source
        self._data = data
        self._batch_size = batch_size
        self._seed_shape = seed_shape
        self._table: Tensor | None = None  # (*seeds, rows of the source)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def log_ratio(self, batch: Batch) -> Tensor:
        """log w of each row, (*seeds, B); NaN for rows of other data."""
        if self._table is None:
            self._table = self._tabulate()
        return self._table.gather(-1, batch.rows)

    def ratio(self, batch: Batch) -> Tensor:
        """w of each row, (*seeds, B)."""
        return torch.exp(self.log_ratio(batch))

    @torch.no_grad()
    def _tabulate(self) -> Tensor:
        data, size = self._data, self._batch_size
        found = []
        for start in range(0, len(data), size):
            # In batches as large as those of training, the last one filled up from the start: how a
            # product of matrices is rounded depends on the number of its rows.
            index = torch.arange(start, start + size, dtype=torch.int64, device=data.device)
            index = (index % len(data)).expand(*self._seed_shape, size)
            found.append(self._source.log_ratio(data.at(index)))
        log_ratio = torch.cat(found, -1)[..., : len(data)]  # (*seeds, N)
        # By the row of the source, as `batch.rows` is: rows that were dropped have no ratio.
        table = log_ratio.new_full((*self._seed_shape, data.spec.source_rows), torch.nan)
        table[..., data.rows] = log_ratio
        return table


def tabulated(
    source: RatioSource, data: Transitions, *, batch_size: int, seed_shape: tuple[int, ...]
) -> RatioSource:
    """`source` with its ratios of the rows of `data` in a table of 4 bytes a row and seed.

    Only for a source that is not trained meanwhile. They are those of the source to rounding.
    """
    # By `__getattr__` it has what the source has, which a protocol cannot see.
    return cast(RatioSource, TabulatedRatios(source, data, batch_size, seed_shape))
