"""Act with a policy that `ddice export` wrote. Needs numpy and onnxruntime only: neither torch nor
ddice.

python act.py observations.npy              # (S,) or (B, S) -> actions, printed, or written with
--out actions.npy

from act import ExportedPolicy
policy = ExportedPolicy("policy.onnx")
action = policy.act(observation, deterministic=True)
"""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

SCHEMA = 1  # of inputs, outputs and metadata of the .onnx file
OUTPUTS = ("actions", "unit_actions", "candidates", "chosen")


class ExportedPolicy:
    """observation -> action, as the policy that was exported; stochastic calls draw their noise
    from numpy's generator.
    """

    def __init__(self, path: str | Path, *, threads: int = 1):
        import onnxruntime

        if not Path(path).exists():
            raise FileNotFoundError(
                f"{path} does not exist: expected a .onnx file that ddice export wrote"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has a class of its own for every failure
            raise ValueError(
                f"{path} cannot be read as an ONNX model ({error}): truncated, or not one"
            ) from error
        properties = self._session.get_modelmeta().custom_metadata_map
        if "ddice.schema" not in properties:
            raise ValueError(f"{path} is an ONNX model, but not one that ddice export wrote")
        if properties["ddice.schema"] != str(SCHEMA):
            raise ValueError(
                f"{path} has schema {properties['ddice.schema']}, this file reads {SCHEMA}: "
                "export the policy again"
            )
        self.about: dict[str, Any] = json.loads(properties["ddice"])
        self._latents = np.asarray(self.about["latents"], dtype=np.float32)
        self._lock = (
            threading.Lock()
        )  # of the generator; the session may be called by several threads
        self._generator = np.random.default_rng()

    def flatten(self, observation: Any) -> np.ndarray:
        """A flat observation (..., S), or the environment's dict, as (..., S) float32."""
        if not isinstance(observation, Mapping):
            return np.asarray(observation, dtype=np.float32)
        leaves = []
        for part in self.about["observations"]:
            leaf: Any = observation
            for escaped in part["path"].split("/"):  # as in `ddice.data.paths`
                key = escaped.replace("~1", "/").replace("~0", "~")
                if not isinstance(leaf, Mapping) or key not in leaf:
                    raise ValueError(
                        f"expected an observation with the key {part['path']!r}, got "
                        f"{sorted(observation)}"
                    )
                leaf = leaf[key]
            leaf, rank = np.asarray(leaf, dtype=np.float32), len(part["shape"])
            leaves.append(leaf.reshape(*leaf.shape[: leaf.ndim - rank], -1))
        return np.concatenate(leaves, axis=-1)

    def act(
        self, observation: Any, deterministic: bool = False, seed: int | None = None
    ) -> np.ndarray:
        """One observation -> (A,), a batch -> (B, A), in the environment's units.

        Raises ValueError for a wrong shape, NaN or infinity, and rather than return NaN.
        """
        flat = self.flatten(observation)
        size = self.about["observation_size"]
        if flat.ndim not in (1, 2) or flat.shape[-1] != size or not len(flat):
            raise ValueError(
                f"expected observations of shape ({size},) or (B, {size}), got {flat.shape}"
            )
        if not np.isfinite(flat).all():
            raise ValueError(
                "the observation holds NaN or infinity at "
                f"{np.argwhere(~np.isfinite(flat))[0].tolist()}"
            )
        rows = np.atleast_2d(flat)
        if deterministic:
            noise, uniform = (
                np.repeat(self._latents[None], len(rows), 0),
                np.full(len(rows), -1, dtype=np.float32),
            )
        else:
            with self._lock:
                generator = self._generator if seed is None else np.random.default_rng(seed)
                noise = generator.standard_normal(
                    (len(rows), *self._latents.shape), dtype=np.float32
                )
                uniform = generator.random(len(rows), dtype=np.float32)
        actions = self.run(rows, noise, uniform)["actions"]
        if np.isnan(actions).any():
            row = int(np.argwhere(np.isnan(actions))[0, 0])
            raise ValueError(
                f"the policy has no action for row {row} but NaN: the observation lies far "
                "outside its data, or its training diverged"
            )
        return actions[0] if flat.ndim == 1 else actions

    def run(
        self, observations: np.ndarray, noise: np.ndarray, uniform: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Observations (B, S), noise (B, K, A), uniform numbers (B,), -1 for the argmax of a
        softmax selection -> all outputs of the model.

        actions (B, A) in the environment's units, unit_actions (B, A) in [-1, 1], candidates (B, K,
        A) as sampled, chosen (B,).
        """
        feeds = {"observations": observations, "noise": noise, "uniform": uniform}
        if (fixed := self.about["batch"]) is None:
            return self._call(feeds)
        chunks = []
        for start in range(0, len(observations), fixed):
            part = {name: array[start : start + fixed] for name, array in feeds.items()}
            missing = fixed - len(
                part["uniform"]
            )  # the last chunk is filled with copies of its last row
            full = {
                name: np.concatenate([array, np.repeat(array[-1:], missing, 0)])
                for name, array in part.items()
            }
            chunks.append(
                {name: array[: fixed - missing] for name, array in self._call(full).items()}
            )
        return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in OUTPUTS}

    def _call(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(OUTPUTS, self._session.run(list(OUTPUTS), feeds), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description="Act with an exported policy.")
    parser.add_argument(
        "observations", help=".npy file of one observation (S,) or of several (B, S)"
    )
    parser.add_argument("--policy", default=str(Path(__file__).parent / "policy.onnx"))
    parser.add_argument("--deterministic", action="store_true", help="fixed latents and argmax")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--out", help=".npy file for the actions; without it they are printed")
    options = parser.parse_args()
    actions = ExportedPolicy(options.policy).act(
        np.load(options.observations, allow_pickle=False), options.deterministic, options.seed
    )
    if options.out:
        np.save(options.out, actions, allow_pickle=False)
    else:
        print(json.dumps(actions.tolist()))


if __name__ == "__main__":
    main()
