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
import hashlib
import json
import math
import operator
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SCHEMA = 3  # of inputs, outputs and metadata of the .onnx file
OUTPUTS = ("actions", "unit_actions", "candidates", "chosen")


def seal(model: bytes) -> bytes:
    """The end of a sealed file: a digest of all before it, as one more entry of an ONNX model's
    metadata (field 14: key is its field 1, value its field 2; all are shorter than 128 bytes).
    """
    key, value = b"ddice.digest", hashlib.blake2b(model, digest_size=16).hexdigest().encode()
    entry = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([len(value)]) + value
    return b"\x72" + bytes([len(entry)]) + entry


def _float32(values: Any) -> np.ndarray:
    with np.errstate(over="ignore"):  # what becomes infinite is refused by name
        return np.asarray(values, dtype=np.float32)


def _generator(seed: Any) -> np.random.Generator:
    """Of any integer: numpy itself takes no negative ones."""
    return np.random.default_rng(operator.index(seed) % 2**64)


class ExportedPolicy:
    """observation -> action, as the policy that was exported; stochastic calls draw their noise
    from numpy's generator.
    """

    def __init__(self, path: str | Path, *, threads: int = 1):
        import onnxruntime

        if not Path(path).is_file():
            raise FileNotFoundError(
                f"{path} does not exist: expected a .onnx file that ddice export wrote"
            )
        content = Path(path).read_bytes()
        end = len(content) - len(seal(b""))
        if content[max(0, end) :] != seal(content[: max(0, end)]):
            raise ValueError(
                f"{path} is damaged, or not a model that ddice export of this version wrote: "
                "export the policy again"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        try:
            # Of the bytes that were checked, because the file may be another by now.
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
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
        self._limits = np.asarray(self.about["limits"], dtype=np.float32)
        # of the generator; the session may be called by several threads
        self._lock = threading.Lock()
        self._generator = np.random.default_rng()

    def flatten(self, observation: Any) -> np.ndarray:
        """The environment's observation (an array, or dicts of them), or in place of dicts a flat
        one (..., S), as (..., S) float32: what the policy takes, and nothing else.
        """
        # As `ddice.data.spec.Observations.flatten`, which this file cannot import: change both.
        parts, size = self.about["observations"], self.about["observation_size"]
        if not isinstance(observation, Mapping) and any(part["path"] for part in parts):
            flat = _float32(observation)
            if flat.ndim and flat.shape[-1] == size:
                return flat
        return np.concatenate([self._leaf(observation, part) for part in parts], axis=-1)

    def _leaf(self, observation: Any, part: Mapping[str, Any]) -> np.ndarray:
        """One part of an observation, its own axes flattened."""
        leaf, shape = observation, tuple(part["shape"])
        escaped = part["path"].split("/") if part["path"] else ()  # as in `ddice.data.paths`
        # "~1" before "~0", as in a JSON pointer (RFC 6901, section 4): "~01" stands for "~1".
        for key in (one.replace("~1", "/").replace("~0", "~") for one in escaped):
            if not isinstance(leaf, Mapping) or key not in leaf:
                have = sorted(leaf) if isinstance(leaf, Mapping) else type(leaf).__name__
                raise ValueError(
                    f"expected an observation with the key {part['path']!r}, or a flat one of "
                    f"{self.about['observation_size']} numbers, got {have}"
                )
            leaf = leaf[key]
        if isinstance(leaf, Mapping):
            raise ValueError(f"expected an array of shape {shape}, got a dict of {sorted(leaf)}")
        array = _float32(leaf)
        batch = array.ndim - len(shape)
        if batch < 0 or array.shape[batch:] != shape:
            name = f"observation[{part['path']!r}]" if part["path"] else "observation"
            raise ValueError(
                f"expected {name} of shape (..., {', '.join(map(str, shape))}), got {array.shape}"
            )
        return array.reshape(*array.shape[:batch], math.prod(shape))

    def act(
        self,
        observation: Any,
        deterministic: bool = False,
        seed: int | Sequence[int] | None = None,
    ) -> np.ndarray:
        """One observation -> (A,), a batch -> (B, A), in the environment's units. seed: one number,
        or one per row (row i then depends on seed[i] alone).

        Raises ValueError for a wrong shape, NaN or infinity, and rather than return NaN.
        """
        flat = self.flatten(observation)
        if flat.ndim not in (1, 2):
            raise ValueError(
                f"expected one observation or a batch of them, got {flat.ndim - 1} batch axes: "
                "flatten them first"
            )
        if not len(flat):
            raise ValueError("expected at least one observation, got an empty batch")
        if not np.isfinite(flat).all():
            raise ValueError(
                "the observation holds NaN or infinity at "
                f"{np.argwhere(~np.isfinite(flat))[0].tolist()}"
            )
        if (far := np.abs(flat) > self._limits).any():
            raise ValueError(
                f"the observation at {np.argwhere(far)[0].tolist()} of shape {flat.shape} lies "
                "further from the data than float32 can compute with: is it in other units?"
            )
        rows = np.atleast_2d(flat)
        if deterministic:
            latents = np.repeat(self._latents[None], len(rows), 0)
            uniform = np.full(len(rows), -1, dtype=np.float32)
        else:
            latents, uniform = self._noise(len(rows), seed)
        noise = latents * np.float32(self.about["noise_scale"])
        actions = self.run(rows, noise, uniform)["actions"]
        if np.isnan(actions).any():
            row = int(np.argwhere(np.isnan(actions))[0, 0])
            raise ValueError(
                f"the policy has no action for row {row} but NaN: the observation lies far "
                "outside its data, or its training diverged"
            )
        return actions[0] if flat.ndim == 1 else actions

    def _noise(self, batch: int, seed: int | Sequence[int] | None) -> tuple[np.ndarray, np.ndarray]:
        """Latents (B, K, A) and uniform numbers (B,)."""
        if seed is None:
            with self._lock:
                return self._draw(batch, self._generator)
        if not np.ndim(seed):
            return self._draw(batch, _generator(seed))
        seeds = list(np.asarray(seed))
        if len(seeds) != batch:
            raise ValueError(
                f"expected one seed, or one for each of the {batch} observations, got {len(seeds)}"
            )
        drawn = [self._draw(1, _generator(one)) for one in seeds]
        noise, uniform = zip(*drawn, strict=True)
        return np.concatenate(noise), np.concatenate(uniform)

    def _draw(self, batch: int, source: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        # The noise first and then the uniform numbers: the order belongs to what a seed means.
        noise = source.standard_normal((batch, *self._latents.shape), dtype=np.float32)
        return noise, source.random(batch, dtype=np.float32)

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
            # the last chunk is filled with copies of its last row
            missing = fixed - len(part["uniform"])
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
    # Without pickles, because an array from a stranger must not run code.
    actions = ExportedPolicy(options.policy).act(
        np.load(options.observations, allow_pickle=False), options.deterministic, options.seed
    )
    if options.out:
        np.save(options.out, actions, allow_pickle=False)
    else:
        print(json.dumps(actions.tolist()))


if __name__ == "__main__":
    main()
