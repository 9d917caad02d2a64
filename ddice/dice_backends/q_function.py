"""Q(s, a) for an ensemble of members: the one door through which a generated action reaches a
critic.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from ddice.core.config import Config
from ddice.core.randomness import Seed
from ddice.data import Spec
from ddice.diffusion.networks import MLP, AnyEncoder, Encoder, FlattenEncoder, Network

# The default of every network that scores actions. What a policy asks about lies between and
# beyond the actions of the data, where a plain network extrapolates along its last slope; with
# LayerNorm its answer is bounded by its last weights. Without it ReBRAC loses a quarter of its
# score on locomotion and all of it on AntMaze (arXiv 2305.09836).
SCORES_ACTIONS = MLP(layer_norm=True)


class QFunction(nn.Module):
    """Q(s, a) for M members, reduced by the selection rule of an extractor: critic(s, a), plus V(s)
    where the critic is an advantage.

    `offset` (*seeds) is a constant added to all values. In the units of the transformed rewards.
    """

    offset: Tensor

    def __init__(self, config: QConfig, encoder: Encoder, critic: Network, value: Network | None):
        super().__init__()
        self.config, self.encoder, self.critic, self.value = config, encoder, critic, value
        self.register_buffer(
            "offset", torch.zeros(critic.members[:-1], dtype=torch.float32, device="cpu")
        )

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Observations (*seeds, B, S), actions (*seeds, B, A) in [-1, 1] -> (*seeds, M, B)."""
        # (*seeds, B, F) -> (*seeds, 1, B, F): all members see the same input, and the result is
        # (*seeds, M, B).
        features = self.encoder(observations)
        axis = len(self.critic.members) - 1
        q: Tensor = self.critic(features.unsqueeze(axis), actions.unsqueeze(axis)).squeeze(-1)
        # Q = V + e: V is the same for all actions of a state, so the ranking is that of e.
        if self.value is not None:
            q = q + self.value(features).squeeze(-1).unsqueeze(axis)
        return q + self.offset[..., None, None]


class QConfig(Config):
    """How to build a `QFunction`: kept with every saved policy that selects by Q."""

    critic: MLP = SCORES_ACTIONS
    members: int = Field(2, ge=1)
    value: MLP | None = None
    encoder: AnyEncoder = FlattenEncoder()

    def build(self, spec: Spec, seed: Seed = 0, stream: str = "q") -> QFunction:
        encoder = self.encoder.build(spec.normalizer.mean, spec.normalizer.std)
        critic = self.critic.build(
            {"features": encoder.size, "actions": spec.actions.size},
            1,
            seed=seed,
            stream=stream,
            members=(self.members,),
        )
        value = (
            None
            if self.value is None
            else self.value.build({"features": encoder.size}, 1, seed=seed, stream="value")
        )
        return QFunction(self, encoder, critic, value)
