"""Your own environment: from recorded arrays to a policy that plays.

python examples/own_env.py
"""

from __future__ import annotations

import argparse

from reach import ENV, record

import ddice
from ddice.dice_backends import PiecewiseF
from ddice.extractors import GuideThenSelect, SelectOnly


def main(steps: int = 1500, episodes: int = 30, out: str = "runs/own_env") -> tuple[float, float]:
    """Mean returns of the behaviour and of the policy."""
    # Rewards and ends as they were recorded; the environment is where policies are evaluated.
    data = ddice.load_dataset(record(), env=ENV)
    print(data.describe())

    prior = ddice.DiffusionPrior().fit(data, steps=steps, seed=0)
    # "ess:0.3": the temperature at which ratios weigh as much as 30 % of the rows would.
    backend = PiecewiseF(temperature="ess:0.3").fit(data, steps=steps, seed=0)
    policy = GuideThenSelect(candidates=4).fit(
        data, prior=prior, backend=backend, steps=steps, seed=0
    )
    behaviour = SelectOnly(candidates=1).fit(data, prior=prior)

    before = ddice.evaluate(behaviour, episodes=episodes, seed=0)
    after = ddice.evaluate(policy, episodes=episodes, seed=0)
    print(f"behaviour: {before.mean:.2f}, policy: {after.mean:.2f}")
    policy.save(f"{out}/policy")
    print(f"saved: {out}/policy")
    return before.mean, after.mean


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500, help="of each training")
    parser.add_argument("--episodes", type=int, default=30, help="of each evaluation")
    parser.add_argument("--out", default="runs/own_env", help="folder for the policy")
    options = parser.parse_args()
    main(options.steps, options.episodes, options.out)
