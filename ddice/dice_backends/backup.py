"""What Q regresses, or what stands for Q where V is all that is learned: the reward and the next
value, or lambda-returns along the episodes of the data.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from ddice.core.config import Config, from_kind
from ddice.core.randomness import Seed, seed_shape
from ddice.data import Batch, Spec, Transitions
from ddice.data.measures import Pieces
from ddice.dice_backends.base import Backend

# Rows whose next values are computed at once: few enough for any memory, with several seeds too.
ROWS_AT_ONCE = 16_384


def lambda_returns(
    rewards: Tensor,  # (N,)
    next_values: Tensor,  # (*seeds, N), V(s')
    terminations: Tensor,  # (N,)
    pieces: Pieces,
    *,
    discount: float,
    lam: float,
) -> Tensor:
    """G_t = r_t + discount ((1 - lam) V(s_t+1) + lam G_t+1) within each piece, (*seeds, N) float64;
    r_t at a termination, and r_t + discount V(s_t+1) in the last row of a piece that was cut.
    """
    # Written as a discounted sum: G_t = c_t + discount lam G_t+1, where c_t holds all that row t
    # adds by itself. `where`, not a product, keeps a non-finite V(s') behind a termination out.
    following = torch.where(terminations, 0.0, next_values.double())
    share = torch.where(pieces.remaining > 0, (1 - lam) * following, following)
    return pieces.to_go(rewards.double() + discount * share, discount * lam)


class Backup(Config, abstract=True):
    """How far the target of Q looks ahead."""

    kind: str

    @abstractmethod
    def build(self, spec: Spec, seed: Seed = 0) -> Targets:
        """The targets, for one seed or several."""


class Targets(nn.Module):
    """The targets, made of the V that a backend bootstraps from. What lasts from step to step is a
    buffer, so that it travels with the state of the backend.
    """

    def prepare(self, backend: Backend, data: Transitions) -> None:
        """What must be known of the whole dataset before the first update; nothing here."""

    @abstractmethod
    def targets(self, backend: Backend, batch: Batch, step: int) -> Tensor:
        """Those of a batch at this step of training, (*seeds, B), without a gradient."""

    @abstractmethod
    def latest(self, backend: Backend, batch: Batch) -> Tensor:
        """The same for who reads and does not train. Raises ValueError for rows of other data
        where targets are of rows.
        """


class OneStep(Backup):
    """r + gamma (1 - d) V(s')."""

    kind: Literal["one_step"] = "one_step"

    def build(self, spec: Spec, seed: Seed = 0) -> OneStepTargets:
        return OneStepTargets()


class OneStepTargets(Targets):
    """Computed anew for each batch."""

    @torch.no_grad()
    def targets(self, backend: Backend, batch: Batch, step: int) -> Tensor:
        return backend.bootstrap(batch, backend.bootstrap_value(batch.next_observations))

    def latest(self, backend: Backend, batch: Batch) -> Tensor:
        return self.targets(backend, batch, backend.step)


class LambdaReturns(Backup):
    """G_t = r_t + gamma ((1 - lam) V(s_t+1) + lam G_t+1) along the episodes of the data (Peng's
    Q(lambda), arXiv 2103.00107), computed for all rows at once every `refresh_every` steps.

    Rewards reach V by 1 / (1 - lam) rows at once. The larger lam, the more Q is that of the
    behaviour: at 1 it regresses returns-to-go. 0 is `OneStep` with a V that stands still between
    refreshes. A refresh costs one evaluation of V on the whole dataset.
    """

    kind: Literal["lambda_returns"] = "lambda_returns"
    lam: float = Field(0.95, ge=0, le=1, description="lambda: share of the return that is observed")
    refresh_every: int = Field(500, ge=1, description="steps between two computations of all G")

    def build(self, spec: Spec, seed: Seed = 0) -> LambdaReturnsTargets:
        """Raises ValueError for data without episodes, and for episodes of one row each."""
        if spec.episodes in (0, spec.transitions):
            found = "episodes of one row each" if spec.episodes else "independent transitions"
            raise ValueError(
                f"LambdaReturns follow the episodes of the data, and these are {found}: give whole "
                "episodes (terminations and truncations, or episode_ids), or take "
                'backup="one_step"'
            )
        return LambdaReturnsTargets(self, spec, seed)


class LambdaReturnsTargets(Targets):
    """G of every row of the source, as it was at the last refresh."""

    returns: Tensor  # (*seeds, source rows)

    def __init__(self, config: LambdaReturns, spec: Spec, seed: Seed):
        super().__init__()
        self.config = config
        # NaN in rows that are not of the data: whoever reads them is told, and nobody is misled.
        shape = (*seed_shape(seed), spec.source_rows)
        unknown = torch.full(shape, torch.nan, dtype=torch.float32, device="cpu")
        self.register_buffer("returns", unknown)
        self._prepared: tuple[Transitions, Pieces] | None = None

    def prepare(self, backend: Backend, data: Transitions) -> None:
        self._prepared = data, data.pieces

    @torch.no_grad()
    def targets(self, backend: Backend, batch: Batch, step: int) -> Tensor:
        if self._prepared is None:
            raise ValueError(
                "LambdaReturns need the whole dataset first: call backend.prepare(data) before "
                "backend.update(...)"
            )
        # Counted from the end of a warm start, whose V is the first that is worth looking at. By
        # the step alone, so that a resumed part refreshes when it would have, and reads what it
        # would have read until then.
        if (step - backend.warm_up) % self.config.refresh_every == 0:
            self._refresh(backend, *self._prepared)
        return self._of_rows(batch)

    @torch.no_grad()
    def latest(self, backend: Backend, batch: Batch) -> Tensor:
        found = self._known(batch)
        # Asked before the first refresh, by joint training in a warm start.
        if found is None and self._prepared is not None and self.returns.isnan().all():
            self._refresh(backend, *self._prepared)
            found = self._known(batch)
        if found is not None:
            return found
        raise ValueError(
            "LambdaReturns know the rows of the dataset that was prepared for training, and these "
            'are others: ask for ratios of that dataset, or train with backup="one_step"'
        )

    def _known(self, batch: Batch) -> Tensor | None:
        """Those of the batch; None where a row has none."""
        if int(batch.rows.max()) >= self.returns.shape[-1]:
            return None
        returns = self._of_rows(batch)
        return None if bool(returns.isnan().any()) else returns

    def _of_rows(self, batch: Batch) -> Tensor:
        return self.returns.gather(-1, batch.rows.expand(*self.returns.shape[:-1], -1))

    def _refresh(self, backend: Backend, data: Transitions, pieces: Pieces) -> None:
        seeds = self.returns.shape[:-1]
        values = [
            backend.bootstrap_value(observations.expand(*seeds, *observations.shape))
            for observations in torch.split(data.next_observations, ROWS_AT_ONCE)
        ]
        returns = lambda_returns(
            backend.rewards(data.rewards),
            torch.cat(values, -1),
            data.terminations,
            pieces,
            discount=backend.discount,
            lam=self.config.lam,
        )
        # By the row of the source, as `batch.rows` is; rows that were dropped are never drawn.
        self.returns.index_copy_(-1, data.rows, returns.float())


AnyBackup = Annotated[
    Annotated[OneStep | LambdaReturns, Field(discriminator="kind")],
    BeforeValidator(from_kind),
]
