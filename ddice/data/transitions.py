"""Flat transitions: one packed float32 table, read in random batches, in order, or whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ddice.core.config import plain_count
from ddice.core.randomness import Seed, generator, randint
from ddice.data.batch import Batch, InitialBatch
from ddice.data.description import Description, Provenance, describe
from ddice.data.horizon import horizon_of
from ddice.data.measures import (
    EpisodeTotals,
    Pieces,
    fingerprint,
    normalizer_of,
    reward_summary,
)
from ddice.data.spec import Spec


@dataclass(frozen=True)
class Columns:
    """Where the packed table keeps what: observations | next observations | actions | reward,
    termination, weight.
    """

    observation: int
    action: int

    @property
    def width(self) -> int:
        return 2 * self.observation + self.action + 3


class Transitions:
    """N transitions and what is known about them (`spec`). Made by `ddice.load_dataset`; `sample`
    is the only random reader.

    `episode` (N,) numbers the episodes from 0, None for independent transitions.
    `totals`: returns and lengths of all recorded episodes, None likewise.
    `initial_observations` (E, S) are the first observations of the episodes, or those given with
    the data, else None.
    """

    def __init__(
        self,
        table: Tensor,  # (N, 2S + A + 3), laid out as `Columns` says
        rows: Tensor,  # (N,)
        *,
        spec: Spec,
        episode: Tensor | None,
        initial_observations: Tensor | None,
        initial_weights: Tensor | None,
        initial_by_episode: bool,
        totals: EpisodeTotals | None,
        provenance: Provenance,
    ) -> None:
        self.spec = spec
        # Apart from the table, because float32 counts exactly only up to 2^24.
        self.rows = rows
        self.episode = episode
        self.initial_observations = initial_observations
        self.initial_weights = initial_weights
        self.totals = totals
        self._table = table
        self._columns = Columns(spec.observations.size, spec.actions.size)
        self._initial_by_episode = initial_by_episode
        self._provenance = provenance

    def __len__(self) -> int:
        return len(self._table)

    def __repr__(self) -> str:
        columns = self._columns
        return (
            f"Transitions({len(self)} steps, {self.spec.episodes} episodes, "
            f"S={columns.observation}, A={columns.action}, {self.device})"
        )

    @property
    def device(self) -> torch.device:
        return self._table.device

    @property
    def observations(self) -> Tensor:
        """(N, S) float32, raw; a view."""
        return self._table[:, : self._columns.observation]

    @property
    def next_observations(self) -> Tensor:
        """(N, S) float32, raw; a view. Not meaningful in terminated rows."""
        return self._table[:, self._columns.observation : 2 * self._columns.observation]

    @property
    def actions(self) -> Tensor:
        """(N, A) in [-1, 1]; a view. `spec.actions.from_unit` gives the environment's."""
        return self._table[:, 2 * self._columns.observation : -3]

    @property
    def rewards(self) -> Tensor:
        """(N,) raw; a view."""
        return self._table[:, -3]

    @property
    def terminations(self) -> Tensor:
        """(N,) bool."""
        return self._table[:, -2] != 0

    @property
    def weights(self) -> Tensor:
        """(N,), 1 unless the source gave others; a view."""
        return self._table[:, -1]

    def sample(self, batch_size: int, *, seed: Seed, step: int) -> Batch:
        """`batch_size` transitions drawn uniformly with replacement, and as many first observations
        where there are any.

        A pure function of (seed, step) and the kind of device; a sequence of seeds gives a leading
        axis whose slice i is what seed i draws alone.
        """
        batch_size = plain_count(batch_size, "batch_size")
        if batch_size < 1:
            raise ValueError(f"expected batch_size of at least 1, got {batch_size}")
        # Streams apart: data with and without initial observations draw the same transitions.
        index = randint(seed, "batch", step, len(self), (batch_size,), self.device)
        initial = None
        if self.initial_observations is not None and self.initial_weights is not None:
            first = randint(
                seed, "initial", step, len(self.initial_observations), (batch_size,), self.device
            )
            initial = InitialBatch(self.initial_observations[first], self.initial_weights[first])
        flat = index.reshape(-1)
        # One gather from the packed table, in place of one for each column.
        packed = self._table.index_select(0, flat).view(*index.shape, self._columns.width)
        return self._batch(packed, self.rows.index_select(0, flat).view(index.shape), initial)

    def batches(self, size: int) -> Iterator[Batch]:
        """Every transition once, in order, in batches of at most `size`, without initial
        observations.
        """
        if size < 1:
            raise ValueError(f"expected a batch size of at least 1, got {size}")
        for packed, rows in zip(
            torch.split(self._table, size), torch.split(self.rows, size), strict=True
        ):
            yield self._batch(packed, rows, None)

    def full(self) -> Batch:
        """Everything as one batch, with all initial observations: the exact objective of a
        tabular problem.
        """
        initial = None
        if self.initial_observations is not None and self.initial_weights is not None:
            initial = InitialBatch(self.initial_observations, self.initial_weights)
        return self._batch(self._table, self.rows, initial)

    def at(
        self,
        index: Tensor,  # (B,) int64
    ) -> Batch:
        """The transitions at these places, counted from 0, without initial observations."""
        return self._batch(self._table[index], self.rows[index], None)

    def _batch(self, packed: Tensor, rows: Tensor, initial: InitialBatch | None) -> Batch:
        size, actions = self._columns.observation, self._columns.action
        observations, following, taken, rest = torch.split(packed, [size, size, actions, 3], dim=-1)
        rewards, terminations, weights = rest.unbind(-1)
        return Batch(
            # Columns of a packed row are strided; networks get dense ones.
            observations=observations.contiguous(),
            actions=taken.contiguous(),
            rewards=rewards.contiguous(),
            next_observations=following.contiguous(),
            # A truncated row is not marked: the process went on from its next observation, so that
            # it keeps its bootstrap.
            terminations=terminations != 0,
            rows=rows,
            weights=weights.contiguous(),
            initial=initial,
        )

    def to(self, device: torch.device | str) -> Transitions:
        """The same transitions on another device."""
        moved = [
            None if t is None else t.to(device)
            for t in (self.episode, self.initial_observations, self.initial_weights)
        ]
        return Transitions(
            self._table.to(device),
            self.rows.to(device),
            spec=self.spec,
            episode=moved[0],
            initial_observations=moved[1],
            initial_weights=moved[2],
            initial_by_episode=self._initial_by_episode,
            totals=self.totals,
            provenance=self._provenance,
        )

    def subset(self, fraction: float, seed: int) -> Transitions:
        """A random share of the episodes (of the rows, for independent transitions), in their
        order; at least one.
        """
        if not 0 < fraction <= 1:
            raise ValueError(f"expected a fraction in (0, 1], got {fraction}")
        units = self._units()
        chosen = max(1, round(fraction * units))
        return self._take(self._draw(units, seed, "subset")[:chosen])

    def split(self, fraction: float, seed: int) -> tuple[Transitions, Transitions]:
        """Two disjoint parts by whole episodes (by rows, for independent transitions): about
        `fraction` of them, and the rest.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"expected a fraction in (0, 1), got {fraction}")
        units = self._units()
        if units < 2:
            raise ValueError(
                f"expected at least 2 {'episodes' if self.episode is not None else 'rows'} to "
                f"split, got {units}"
            )
        order = self._draw(units, seed, "split")
        chosen = min(units - 1, max(1, round(fraction * units)))
        return self._take(order[:chosen]), self._take(order[chosen:])

    @property
    def pieces(self) -> Pieces:
        """The episodes, and their parts where a termination lies inside of one. Raises ValueError
        for independent transitions.
        """
        if self.episode is None:
            raise ValueError(
                "expected whole episodes, got independent transitions: returns-to-go need "
                "terminations and truncations, or episode_ids"
            )
        # How many terminations lie before each row, (N,). Added to the episode's number it gives
        # every piece one of its own, the terminated row being the last of its piece.
        before = torch.nn.functional.pad(self.terminations.cumsum(0)[:-1], (1, 0))
        return Pieces.of(self.episode + before)

    def returns_to_go(self, rewards: Tensor, discount: float) -> Tensor:
        """G_t = sum of discount^k rewards[t + k] to the end of the episode, (N,), for (N,) rewards
        aligned with the rows of this object.

        The sum ends at a termination, which can lie inside an episode, and at the end of the
        episode, a cut or not. Raises ValueError for independent transitions and for another shape.
        """
        pieces = self.pieces
        if tuple(rewards.shape) != (len(self),):
            raise ValueError(
                f"expected rewards of shape ({len(self)},), got {tuple(rewards.shape)}"
            )
        if not 0 <= discount <= 1:
            raise ValueError(f"expected a discount in [0, 1], got {discount}")
        return pieces.to_go(rewards.to(self.device), discount).to(rewards.device)

    def describe(self) -> Description:
        """What the dataset holds, in numbers; `print` it."""
        cpu = self.to("cpu")
        return describe(
            cpu.spec,
            cpu._provenance,
            cpu.observations,
            cpu.actions,
            cpu.terminations,
            cpu.episode,
            cpu.totals,
        )

    def _units(self) -> int:
        return len(self) if self.episode is None else int(self.episode[-1]) + 1

    def _draw(self, units: int, seed: int, stream: str) -> Tensor:
        # On the CPU, so that the same episodes are chosen wherever the data lie.
        return torch.randperm(units, generator=generator(seed, stream), device="cpu")

    def _take(self, units: Tensor) -> Transitions:
        units = units.sort().values.to(self.device)
        initial, initial_weights, episode = self.initial_observations, self.initial_weights, None
        if self.episode is None:
            index = units
        else:
            # (episodes,): the new number of each, -1 where it is left out.
            number = torch.full((self._units(),), -1, dtype=torch.int64, device=self.device)
            number[units] = torch.arange(len(units), device=self.device)
            index = torch.nonzero(number[self.episode] >= 0).squeeze(1)
            episode = number[self.episode[index]]
            # Those given beside the data belong to no episode, and all of them stay.
            if self._initial_by_episode and initial is not None and initial_weights is not None:
                initial, initial_weights = initial[units], initial_weights[units]
        return build(
            self._table[index],
            self.rows[index],
            spec=self.spec,
            episode=episode,
            initial_observations=initial,
            initial_weights=initial_weights,
            initial_by_episode=self._initial_by_episode,
            totals=None if self.totals is None else self.totals.take(units.cpu().numpy()),
            provenance=dataclasses.replace(self._provenance, part_of=self.spec.fingerprint),
        )


def build(
    table: Tensor,
    rows: Tensor,
    *,
    spec: Spec,
    episode: Tensor | None,
    initial_observations: Tensor | None,
    initial_weights: Tensor | None,
    initial_by_episode: bool,
    totals: EpisodeTotals | None,
    provenance: Provenance,
) -> Transitions:
    """`Transitions` whose spec is `spec` with all that the content decides measured anew:
    normaliser, rewards, counts, fingerprints.

    totals: of all that was recorded, where that is more than the transitions.
    """
    size = spec.observations.size
    cpu = table.cpu()
    observations, following = cpu[:, :size], cpu[:, size : 2 * size]
    actions, rewards, terminations, weights = (
        cpu[:, 2 * size : -3],
        cpu[:, -3],
        cpu[:, -2],
        cpu[:, -1],
    )
    episodes = None if episode is None else episode.cpu()
    normalizer = normalizer_of(observations)
    # What a model of the behaviour reads, and no rewards: other rewards find the same trained
    # prior.
    behaviour = fingerprint(
        (spec.observations, spec.actions, spec.view, normalizer), (observations, actions, weights)
    )
    # The next observation of a terminated row is never read, and not every source records it.
    read = (
        following
        if not terminations.any()
        else torch.where(terminations[:, None] != 0, 0.0, following)
    )
    starts = (
        None
        if initial_observations is None or initial_weights is None
        else (initial_observations.cpu(), initial_weights.cpu())
    )
    if episodes is not None and totals is None:
        totals = EpisodeTotals.of(rewards, episodes)
    # Rows are part of the content, because given ratios are looked up by them.
    arrays = [read, rewards, terminations, rows.cpu(), episodes, *(starts or (None, None))]
    if totals is not None and int(totals.lengths.sum()) != len(table):
        arrays += totals.tensors()  # reward transforms read them
    content = fingerprint((behaviour,), arrays)
    measured = {
        "normalizer": normalizer,
        "rewards": reward_summary(rewards, totals),
        "horizon": None if episodes is None else horizon_of(rewards, terminations != 0, episodes),
        "transitions": len(table),
        "episodes": 0 if episodes is None else int(episodes[-1]) + 1,
        "has_initial": starts is not None,
        "fingerprint": content,
        "behaviour_fingerprint": behaviour,
    }
    return Transitions(
        table,
        rows,
        spec=spec.model_copy(update=measured),
        episode=episode,
        initial_observations=initial_observations,
        initial_weights=initial_weights,
        initial_by_episode=initial_by_episode,
        totals=totals,
        provenance=provenance,
    )
