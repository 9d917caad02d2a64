"""What an installed wheel must do, from an empty folder: train, save, load and act.

Nothing of the checkout is in reach.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np

import ddice
from ddice.dice_backends import PiecewiseF
from ddice.extractors import GuideThenSelect

package = Path(ddice.__file__).parent
assert package == Path(sysconfig.get_path("purelib")) / "ddice", (
    f"expected the installed wheel, got {package}"
)
assert (package / "py.typed").exists(), (
    "py.typed is missing: type checkers would ignore the package's types"
)
assert not list(Path().iterdir()), f"expected to run in an empty folder, got {Path().resolve()}"

random, rows = np.random.default_rng(0), 120
arrays = {
    "observations": random.normal(size=(rows, 3)).astype(np.float32),
    "actions": random.uniform(-1, 1, (rows, 2)).astype(np.float32),
    "rewards": random.normal(size=rows).astype(np.float32),
    "terminations": np.arange(rows) % 10 == 9,
    "truncations": np.zeros(rows, dtype=bool),
}
data = ddice.load_dataset(arrays, action_bounds=(-1, 1))
prior = ddice.DiffusionPrior().fit(data, steps=5, progress=False)
backend = PiecewiseF().fit(data, steps=5, progress=False)
policy = GuideThenSelect(candidates=2).fit(
    data, prior=prior, backend=backend, steps=5, progress=False
)
policy.save("policy")
action = ddice.load_policy("policy").act(arrays["observations"][0], seed=0)
assert action.shape == (2,), action
assert np.abs(action).max() <= 1, action
np.testing.assert_array_equal(action, policy.act(arrays["observations"][0], seed=0))

command = Path(sys.executable).parent / "ddice"
done = subprocess.run([command, "--help"], capture_output=True, text=True)
assert done.returncode == 0, done.stderr
assert done.stdout.startswith("usage: ddice"), done.stdout
print(f"==> ddice {ddice.__version__} trains, saves, loads and acts from {package}")
