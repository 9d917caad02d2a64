"""A sweep of the temperature over one prior, and the choice of one.

python examples/sweep.py
"""

from __future__ import annotations

import argparse

from reach import ENV, record

import ddice
from ddice.dice_backends import PiecewiseF
from ddice.extractors import GuideThenSelect

# Targets of the ratios' effective sample size: they mean the same whatever the rewards' units.
TEMPERATURES = ("ess:0.1", "ess:0.3", "ess:0.6")


def main(steps: int = 1500, episodes: int = 30) -> dict[str, float]:
    """Mean returns by temperature."""
    data = ddice.load_dataset(record(), env=ENV)
    prior = ddice.DiffusionPrior().fit(data, steps=steps, seed=0)  # knows no temperature
    returns = {}
    for temperature in TEMPERATURES:
        backend = PiecewiseF(temperature=temperature).fit(data, steps=steps, seed=0)
        policy = GuideThenSelect(candidates=1).fit(
            data, prior=prior, backend=backend, steps=steps, seed=0
        )
        # The same seed: all policies meet the same starts.
        returns[temperature] = ddice.evaluate(policy, episodes=episodes, seed=0).mean
        print(f"{temperature}: temperature {backend.temperature:.3g}, {returns[temperature]:.2f}")
    # Of the seeds of a sweep, only those that did not choose give an honest number.
    print(f"best here: {max(returns, key=lambda name: returns[name])}; score it with new seeds")
    return returns


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500, help="of each training")
    parser.add_argument("--episodes", type=int, default=30, help="of each evaluation")
    options = parser.parse_args()
    main(options.steps, options.episodes)
