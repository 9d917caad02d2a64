"""Metrics for TensorBoard, as a listener of the training loop. Needs the extra `tensorboard`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TensorBoard:
    """Writes every scalar metric as stage/name into the folder. Raises ImportError, with what to
    install, before anything is trained.
    """

    def __init__(self, folder: str | Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                f"TensorBoard is not installed ({error}): pip install 'ddice[tensorboard]'"
            ) from error
        self._make, self._folder = SummaryWriter, str(folder)
        self._writer: SummaryWriter | None = None

    def __call__(self, stage: str, step: int, steps: int, metrics: Mapping[str, Any]) -> None:
        if self._writer is None:  # the folder comes with the first metric
            self._writer = self._make(self._folder)
        for name, value in metrics.items():
            for index, number in enumerate(value if isinstance(value, list) else [value]):
                self._writer.add_scalar(
                    f"{stage}/{name}" + (f"/{index}" if isinstance(value, list) else ""),
                    number,
                    step,
                )
        # At once, so that a run can be watched, and a killed one keeps its curves.
        self._writer.flush()
