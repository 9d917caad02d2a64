"""Decisions by ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddice.policies.engines.base import Choice, Engine
from ddice.policies.engines.decision import DecisionProgram
from ddice.policies.engines.onnx_model import ARGMAX, onnx_model


class OnnxEngine(Engine):
    """Runs the exported decision; one session for single states, one for batches, made when
    first needed.
    """

    name: ClassVar[str] = "onnx"

    def __init__(
        self, decision: DecisionProgram, *, batch_sizes: Sequence[int], rows_per_call: int
    ):
        super().__init__(rows_per_call)
        try:
            import onnx  # noqa: F401
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                f"the engine 'onnx' needs onnx and onnxruntime ({error}): pip install 'ddice[onnx]'"
            ) from error
        self.decision, self._runtime = decision, onnxruntime
        self._sessions: dict[
            int | None, tuple[Any, set[str]]
        ] = {}  # with the names of their inputs
        for batch in batch_sizes:  # at least one: what is not covered is said at once
            self._session(batch)

    def _session(self, states: int) -> tuple[Any, set[str]]:
        batch = 1 if states == 1 else None
        if batch not in self._sessions:
            bounds = [-1.0] * self.decision.actions, [1.0] * self.decision.actions
            model = onnx_model(self.decision, batch=batch, low=bounds[0], high=bounds[1])
            options = self._runtime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.log_severity_level = 3
            session = self._runtime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            self._sessions[batch] = session, {known.name for known in session.get_inputs()}
        return self._sessions[batch]

    def run(self, observations: Tensor, noise: Tensor, uniform: Tensor | None) -> Choice:
        session, names = self._session(len(noise))
        if "uniform" in names and uniform is None:
            uniform = noise.new_full((len(noise),), ARGMAX)
        given = {"observations": observations, "noise": noise, "uniform": uniform}
        feeds = {
            name: tensor.contiguous().numpy()
            for name, tensor in given.items()
            if tensor is not None and name in names
        }
        return Choice(
            *(
                torch.from_numpy(array)
                for array in session.run(["unit_actions", "candidates", "chosen"], feeds)
            )
        )
