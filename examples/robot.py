"""Export a policy, and run it in a control loop that needs neither torch nor ddice.

python examples/robot.py
Needs pip install 'ddice[onnx]' where it exports, and numpy and onnxruntime where it runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path
from typing import Any

import numpy as np
from reach import GOAL, Reach, record

import ddice
from ddice.dice_backends import PiecewiseF
from ddice.extractors import GuideThenSelect
from ddice.policies.export import export

PERIOD = 0.02  # seconds: 50 decisions per second


def exported(steps: int, out: Path) -> None:
    """Train a small policy and write it as one ONNX file, for one observation per call."""
    data = ddice.load_dataset(record(), action_bounds=(-1, 1))
    prior = ddice.DiffusionPrior().fit(data, steps=steps, seed=0)
    backend = PiecewiseF(temperature="ess:0.3").fit(data, steps=steps, seed=0)
    policy = GuideThenSelect(candidates=4).fit(
        data, prior=prior, backend=backend, steps=steps, seed=0
    )
    print(export(policy, out, batch=1))


def loop(act: Any, ticks: int) -> tuple[float, list[float]]:
    """The last distance from the goal, and seconds of each decision."""
    robot, took = Reach(), []
    observation, _ = robot.reset(seed=0)
    for tick in range(ticks):
        began = time.perf_counter()
        action = act(observation, seed=tick)
        took.append(time.perf_counter() - began)
        observation, *_ = robot.step(action)
        time.sleep(max(0.0, PERIOD - (time.perf_counter() - began)))
    return float(np.linalg.norm(observation - GOAL)), took


def main(steps: int = 1500, ticks: int = 100, out: str = "runs/robot") -> float:
    """The last distance from the goal."""
    exported(steps, Path(out))
    # act.py lies beside policy.onnx; on the robot it is imported as it is.
    spec = importlib.util.spec_from_file_location("act", Path(out) / "act.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    policy = module.ExportedPolicy(Path(out) / "policy.onnx")
    distance, took = loop(policy.act, ticks)
    print(
        f"{1e3 * np.median(took):.1f} ms per decision, 99 % below "
        f"{1e3 * np.quantile(took, 0.99):.1f} ms; {distance:.2f} from the goal at the end"
    )
    return distance


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500, help="of each training")
    parser.add_argument("--ticks", type=int, default=100, help="of the control loop")
    parser.add_argument("--out", default="runs/robot", help="folder of the exported policy")
    options = parser.parse_args()
    main(options.steps, options.ticks, options.out)
