"""gelu, stated as a contributor would: one entry in the table of operations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ddice.diffusion.guidance import Guidance
from ddice.diffusion.networks import MLP, OPERATIONS, Operation
from ddice.diffusion.networks.operations import Function, V
from ddice.diffusion.prior import DiffusionPrior
from ddice.diffusion.samplers import Diffusion
from ddice.diffusion.solvers import DDIM

error_function = Function(torch.erf, "Erf", "tl.erf({x})")
exponential = Function(torch.exp, "Exp", "tl.exp({x})")


def share(x: V) -> V:
    """P(N(0, 1) <= x)."""
    return 0.5 * (1 + error_function(x / math.sqrt(2)))


def gelu(x: V) -> V:
    return x * share(x)


def gelu_backward(gradient: V, x: V) -> V:
    density = exponential(-0.5 * (x * x)) / math.sqrt(2 * math.pi)
    return gradient * (share(x) + x * density)


GELU = Operation(inputs=1, formula=gelu, backward=Operation(inputs=2, formula=gelu_backward))


@contextmanager
def stated() -> Iterator[None]:
    OPERATIONS["gelu"] = GELU
    try:
        yield
    finally:
        del OPERATIONS["gelu"]


def sampler() -> Diffusion:
    """Guided by a network of gelu."""
    guidance = Guidance(network=MLP(hidden=(16, 12), activation="gelu", layer_norm=True))
    return Diffusion(
        prior=DiffusionPrior(), guidance=guidance, guidance_scale=1.5, solver=DDIM(evaluations=2)
    )
