"""Your own critic in front of the extractors: weights from returns, as in advantage-weighted
regression.

python examples/own_critic.py
"""

from __future__ import annotations

import argparse

import numpy as np
from reach import ENV, record

import ddice
from ddice.dice_backends import GivenRatio
from ddice.extractors import GaussianBC, WeightedBC

DISCOUNT, TEMPERATURE, MOST = 0.9, 1.0, 20.0


def weights_of(data: ddice.Transitions) -> np.ndarray:
    """w = exp((G - V(s)) / temperature) for each row of the source, (N,): G is the discounted
    return from there, V its least-squares fit by second-order features of the state.
    """
    returns = data.returns_to_go(data.rewards, DISCOUNT).numpy()
    x = data.observations.numpy()
    features = np.concatenate([np.ones((len(x), 1)), x, x**2, x.prod(1, keepdims=True)], 1)
    coefficients, *_ = np.linalg.lstsq(features, returns, rcond=None)
    advantages = returns - features @ coefficients
    weights = np.zeros(data.spec.source_rows)  # one for each row of the source
    weights[data.rows.numpy()] = np.exp(advantages / TEMPERATURE).clip(max=MOST)
    return weights


def main(steps: int = 2000, episodes: int = 30) -> dict[str, float]:
    """Mean returns by extractor."""
    data = ddice.load_dataset(record(), env=ENV)
    backend = GivenRatio(source=weights_of(data)).fit(data)
    prior = ddice.DiffusionPrior().fit(data, steps=steps, seed=0)
    policies = {
        "diffusion": WeightedBC().fit(data, prior=prior, backend=backend, steps=steps, seed=0),
        "gaussian": GaussianBC().fit(data, backend=backend, steps=steps, seed=0),
    }
    returns = {
        name: ddice.evaluate(policy, episodes=episodes, seed=0).mean
        for name, policy in policies.items()
    }
    for name, mean in returns.items():
        print(f"{name}: {mean:.2f}")
    return returns


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000, help="of each training")
    parser.add_argument("--episodes", type=int, default=30, help="of each evaluation")
    options = parser.parse_args()
    main(options.steps, options.episodes)
