"""Networks that predict noise, from features of the state, actions and time."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import Field

from ddice.core.config import Config
from ddice.core.plugins import Door
from ddice.core.randomness import Seed
from ddice.diffusion.networks.network import Network
from ddice.diffusion.networks.time import TIME_FEATURES, AnyTime, FourierTime, SmoothTime


class Score(Config, abstract=True):
    """The network of a prior, which gives what its `prediction` names: velocity, or noise. One of
    your own gives a `kind` and `build`.
    """

    kind: str

    @abstractmethod
    def build(self, features: int, actions: int, *, seed: Seed, stream: str) -> Network:
        """The network of the inputs "features", "actions" and "time" (`TIME_FEATURES` numbers), in
        this order, with `actions` outputs; its weights a function of seed and stream.
        """


class ResidualScore(Score):
    """Residual blocks x + W2 silu(W1 norm(x)) over an affine map of
    (actions, features, time).
    """

    kind: Literal["residual"] = "residual"
    width: int = Field(128, ge=1)
    blocks: int = Field(3, ge=1)
    time: AnyTime = SmoothTime()

    def build(self, features: int, actions: int, *, seed: Seed, stream: str) -> Network:
        network = Network(
            {"features": features, "actions": actions, "time": TIME_FEATURES},
            seed=seed,
            stream=stream,
        )
        x = network.linear(("features", "actions", self.time.layers(network, "time")), self.width)
        for _ in range(self.blocks):
            # Normalised inside the branch, before W1: the sum x itself stays an identity path,
            # along which gradients pass unchanged (arXiv 2002.04745).
            inner = network.activation(network.linear(network.layer_norm(x), self.width), "silu")
            x = network.add(x, network.linear(inner, self.width))
        # The sum of the blocks grows with their number; the last norm undoes it. No bound on the
        # output: noise is unbounded.
        network.linear(network.activation(network.layer_norm(x), "silu"), actions)
        return network


class PublishedScore(Score):
    """The network of Diffusion-DICE: a residual U-net 512/256/128/128/256/512 over
    actions, given state and time; 1.63 M parameters.
    """

    kind: Literal["published"] = "published"
    widths: tuple[int, int, int] = (512, 256, 128)
    condition: int = Field(128, ge=1)
    embedding: int = Field(32, ge=1, description="size of the embeddings of state and of time")
    time: AnyTime = FourierTime()

    def build(self, features: int, actions: int, *, seed: Seed, stream: str) -> Network:
        network = Network(
            {"features": features, "actions": actions, "time": TIME_FEATURES},
            seed=seed,
            stream=stream,
        )
        state = network.activation(network.linear("features", self.embedding), "silu")
        time = network.linear(self.time.layers(network, "time"), self.embedding)
        condition = network.linear(
            network.activation(network.linear((state, time), self.condition), "silu"),
            self.condition,
        )

        def block(x: str, width: int) -> str:
            # State and time enter every block as a shift of its hidden values.
            shift = network.linear(network.activation(condition, "silu"), width)
            inner = network.add(network.activation(network.linear(x, width), "silu"), shift)
            inner = network.activation(network.linear(inner, width), "silu")
            # The skip is the identity where widths agree and an affine map where they do not.
            return network.add(inner, x if network.sizes[x] == width else network.linear(x, width))

        first, second, third = self.widths
        down1 = block("actions", first)
        down2 = block(down1, second)
        down3 = block(down2, third)
        up = block(down3, third)
        # Concatenations as in a U-net: 128 + 128 -> 256, then 256 + 256 -> 512.
        up = block(network.concat((down3, up)), second)
        up = block(network.concat((down2, up)), first)
        # 512 + 512 -> A.
        network.linear((down1, up), actions)
        return network


AnyScore = Annotated[ResidualScore | PublishedScore | Score, Door("ddice.scores")]
