"""Policies that Stable-Baselines3 saved, asked one observation at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def load_stable_baselines(
    path: Path, *, deterministic: bool, trust_pickle: bool
) -> Callable[[Any, int], Any]:
    """(observation, seed) -> action of the policy in a .zip of Stable-Baselines3 (or sb3-contrib),
    whatever its algorithm; on the CPU.

    Such a file is unpickled by that library, and unpickling runs any code that its author put in:
    ddice does it only with `trust_pickle`. Raises ValueError without it and for files that hold no
    policy, ImportError without the package, FileNotFoundError without the file.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist: expected a .zip that Stable-Baselines3's model.save(...) wrote"
        )
    if not trust_pickle:
        raise ValueError(
            f"{path} is a pickle inside: loading it runs whatever code its author put in. If "
            "you trust where it comes from, say --trust-pickle (trust_pickle=True); "
            "everything else that ddice reads is never unpickled"
        )
    try:
        from stable_baselines3.common.save_util import load_from_zip_file
    except ImportError as error:
        raise ImportError(
            "a Stable-Baselines3 .zip needs that package, which is not installed: pip install "
            "'ddice[sb3]'"
        ) from error
    data, parameters, _ = load_from_zip_file(path, device="cpu")
    if (
        not data
        or isinstance(data.get("policy_class"), (str, type(None)))
        or "policy" not in parameters
    ):
        raise ValueError(
            f"expected {path} to hold a policy of Stable-Baselines3, got none: is sb3-contrib "
            "installed, if it comes from there?"
        )
    if data.get("use_sde") and not deterministic:
        raise ValueError(
            f"{path} explores with a noise that outlives a step (gSDE), which seeds cannot "
            "repeat: use --deterministic"
        )
    settings = {**data["policy_kwargs"], **({"use_sde": True} if data.get("use_sde") else {})}
    # Stable-Baselines3 draws from torch's global generator, here and below, which is left as it was
    # found.
    with torch.random.fork_rng(devices=[]):
        # The learning rate, 0, belongs to an optimiser that is never stepped.
        policy = data["policy_class"](
            data["observation_space"], data["action_space"], lambda _: 0.0, **settings
        ).to("cpu")
    policy.load_state_dict(parameters["policy"])
    policy.set_training_mode(False)

    def act(observation: Any, seed: int) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return policy.predict(observation, deterministic=deterministic)[0]

    return act
