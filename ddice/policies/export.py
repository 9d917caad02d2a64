"""Export of a policy: one ONNX file, a script that runs it without torch, and a report of how
close it is to the policy.
"""

from __future__ import annotations

import copy
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from ddice.core.config import Config
from ddice.core.randomness import generator
from ddice.core.storage import write_bytes, write_json
from ddice.policies import exported
from ddice.policies.engines.decision import decision_program
from ddice.policies.engines.onnx_model import ARGMAX, onnx_model
from ddice.policies.exported import SCHEMA, ExportedPolicy, seal
from ddice.policies.policy import Policy

TOLERANCE = 1e-5  # of a candidate, relative to the largest
# where the policy itself rounds more than that in float32, as many times its own error is no worse
# than the policy
ROUNDINGS = 4
MOST_TIES = 0.01  # of the decisions
PARITY_ROWS = 256


class Parity(Config):
    """Exported against reference decisions on the same noise, for normally distributed
    observations with the dataset's mean and deviation.
    """

    decisions: int
    largest_error: float
    """Of a candidate, relative to the largest candidate."""
    own_error: float
    """The same of the policy in float32 against itself in float64: clean actions near t = 1
    amplify rounding.
    """
    other_choices: int
    """Decisions that chose another candidate: ties, up to rounding."""
    bytes: int
    versions: dict[str, str]

    def __str__(self) -> str:
        same = self.decisions - self.other_choices
        error = (
            f"largest relative error of a candidate {self.largest_error:.1e}, the policy's own "
            f"rounding {self.own_error:.1e}"
        )
        return f"{same} of {self.decisions} decisions choose the same candidate; {error}"


def export(policy: Policy, folder: str | Path, *, batch: int | None = None) -> Parity:
    """Write policy.onnx, act.py and parity.json into a folder.

    batch: a fixed number of states for each call of the model, None for any; 1 is the fastest for a
    robot. Needs the extra `onnx`. Raises NotCovered (a ValueError) for a policy that cannot be
    exported, and ValueError when the exported decisions differ from the policy's.
    """
    folder = Path(folder)
    # In this order: an engine that needs a GPU could not be moved to the CPU.
    policy = policy.compile("reference").to("cpu")
    config, actions = policy.config, policy.spec.actions
    program = decision_program(policy.procedure)
    about = {
        "observations": [part.model_dump(mode="json") for part in policy.spec.observations.parts],
        "observation_size": policy.spec.observations.size,
        "limits": policy.spec.limits,
        "latents": policy.sampler.latents(config.candidates, actions.size).tolist(),
        "noise_scale": config.noise_scale,
        "batch": batch,
        "env": None if policy.spec.env is None else policy.spec.env.id,
        "notes": config.notes,
        "ddice": version("ddice"),
    }
    model = onnx_model(
        program, batch=batch, low=actions.low, high=actions.high, metadata=about
    ).SerializeToString()
    write_bytes(folder / "policy.onnx", model + seal(model))
    write_bytes(folder / "act.py", Path(exported.__file__).read_bytes())
    # Read back, so that the file itself is compared. It stays where the comparison fails, with the
    # report, to be looked into.
    report = _parity(policy, ExportedPolicy(folder / "policy.onnx"), len(model))
    write_json(folder / "parity.json", report.model_dump(mode="json"))
    tolerance = max(TOLERANCE, ROUNDINGS * report.own_error)
    if not report.largest_error <= tolerance or report.other_choices > MOST_TIES * report.decisions:
        raise ValueError(
            f"the exported policy differs from the policy: {report} (tolerance "
            f"{tolerance:.0e}); see {folder / 'parity.json'}"
        )
    return report


def _parity(policy: Policy, exported_policy: ExportedPolicy, size: int) -> Parity:
    import onnxruntime

    spec, source = policy.spec, generator(0, "parity", 0)
    shape = (PARITY_ROWS, policy.config.candidates, spec.actions.size)
    observations = torch.randn(
        PARITY_ROWS, spec.observations.size, generator=source, dtype=torch.float32, device="cpu"
    ) * torch.tensor(spec.normalizer.std, dtype=torch.float32, device="cpu")
    observations = observations + torch.tensor(
        spec.normalizer.mean, dtype=torch.float32, device="cpu"
    )
    noise = torch.randn(shape, generator=source, dtype=torch.float32, device="cpu")
    expected = policy.decide(observations, noise)
    got = exported_policy.run(
        observations.numpy(), noise.numpy(), np.full(PARITY_ROWS, ARGMAX, dtype=np.float32)
    )
    exact = copy.deepcopy(policy.sampler).double()(observations.double(), noise.double())
    # Actions fill [-1, 1]: relative errors of smaller candidates would matter to nobody.
    size_of = expected.candidates.abs().max().clamp(min=1)
    error = (torch.from_numpy(got["candidates"]) - expected.candidates).abs().max() / size_of
    return Parity(
        decisions=PARITY_ROWS,
        largest_error=float(error),
        own_error=float((expected.candidates - exact).abs().max() / size_of),
        other_choices=int((torch.from_numpy(got["chosen"]) != expected.chosen).sum()),
        bytes=size,
        versions={
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "schema": str(SCHEMA),
        },
    )
