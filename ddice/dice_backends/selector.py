"""Selectors of a (Q, V) pair: which Q ranks the candidates of a policy. The critic that enters the
ratio is the smallest of few members, which is cautious; ranking may want another.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ddice.core.config import Config
from ddice.core.randomness import Seed
from ddice.diffusion.networks import MLP, Network


class Selector(Config, abstract=True):
    """What is trained beside the critic to rank actions, on which targets, and how Q comes of it.

    `adds_value`: Q(s, a) = V(s) + head(s, a), else the head itself.
    """

    kind: str

    adds_value: ClassVar[bool] = False

    @abstractmethod
    def network_of(self, critic: MLP) -> MLP:
        """The network that ranks, where that of the critic is `critic`."""

    @abstractmethod
    def build(self, critic: MLP, inputs: Mapping[str, int], seed: Seed) -> Network | None:
        """The head (*seeds, M), untrained; None where the averaged critic ranks."""

    @abstractmethod
    def targets(
        self,
        q_targets: Tensor,  # (*seeds, B), r + gamma V(s')
        values: Tensor,  # (*seeds, B), V(s)
        weights: Tensor,  # (*seeds, B)
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What every member of the head regresses, (*seeds, B), and metrics of it."""


class AveragedCritic(Selector):
    """The averaged copy of the critic that is trained anyway."""

    kind: Literal["critic"] = "critic"

    def network_of(self, critic: MLP) -> MLP:
        return critic

    def build(self, critic: MLP, inputs: Mapping[str, int], seed: Seed) -> Network | None:
        return None

    def targets(
        self, q_targets: Tensor, values: Tensor, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return q_targets, {}


class CriticEnsemble(Selector):
    """More networks of the critic's kind on the critic's targets (published: ten)."""

    kind: Literal["ensemble"] = "ensemble"
    # Ten: the published selection ensemble for locomotion (arXiv 2407.20109).
    members: int = Field(10, ge=1)

    def network_of(self, critic: MLP) -> MLP:
        return critic

    def build(self, critic: MLP, inputs: Mapping[str, int], seed: Seed) -> Network | None:
        return critic.build(inputs, 1, seed=seed, stream="ensemble", members=(self.members,))

    def targets(
        self, q_targets: Tensor, values: Tensor, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return q_targets, {}
