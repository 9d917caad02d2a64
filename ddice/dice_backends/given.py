"""Ratios that a user brings: weights per source row or a function of the batch, with an optional
Q. How any critic meets the extractors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, ValidationInfo, field_serializer, field_validator
from torch import Tensor
from typing_extensions import Self

from ddice.core.config import Config, import_function
from ddice.core.plugins import require_trusted_function
from ddice.core.randomness import Seed, plain_seed
from ddice.data import Batch, Spec, Transitions
from ddice.dice_backends.diagnostics import ratio_metrics
from ddice.parts import loop
from ddice.parts.fitting import Fits, GoesOn
from ddice.parts.ratio_source import FlowStart, QCallable, RatioKind, RatioSource

NUMPY = ".npy"  # ends the name of a file of weights; other names are of functions
UNIFORM = "uniform"  # names the weights that prefer no row
RatioFunction = Callable[[Batch], Tensor]


NAMED_BY = 4096  # rows whose values name a Q: enough to tell functions apart, and quick


@dataclass(frozen=True)
class _OfEverySeed:
    """A Q of rows (B, S) and (B, A), asked for those of several seeds (R, B, ...): (R, M, B)."""

    q: QCallable

    def __call__(self, observations: Tensor, actions: Tensor) -> Tensor:
        seeds, rows = actions.shape[:2]
        values = self.q(observations.flatten(0, 1), actions.flatten(0, 1))
        return values.reshape(-1, seeds, rows).transpose(0, 1)


def _digest(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, np.ndarray):
        content = np.ascontiguousarray(value).tobytes()
        return f"array:{hashlib.blake2b(content, digest_size=16).hexdigest()}"
    module = getattr(value, "__module__", "?")
    name = getattr(value, "__qualname__", repr(value))
    return f"callable:{module}:{name}"


class GivenRatio(Config, Fits["GivenRatioBackend"]):
    """Weights w >= 0, one per source row (an array or the path of a .npy file), or a callable batch
    -> w (B,) (or its "module:function"); or "uniform", w = 1: extractors then clone the behaviour.

    `q` is a callable (observations (B, S), actions (B, A) in [-1, 1]) -> (M, B) or (B,), or its
    "module:function"; without it only one candidate can be sampled. A JSON recipe can hold names
    and paths only.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    kind: Literal["given"] = "given"
    source: Any = Field(
        description='array, path of a .npy file, callable, "module:function", or "uniform"'
    )
    q: Any = Field(
        None, description='callable or "module:function"; needed for more than one candidate'
    )
    ratio_kind: RatioKind = "action"

    @field_validator("source", mode="before")
    @classmethod
    def _check_source(cls, source: Any) -> Any:
        if isinstance(source, Tensor):
            source = source.detach().cpu().numpy()
        if isinstance(source, Path):
            source = str(source)
        if isinstance(source, str | np.ndarray) or callable(source):
            return source
        if isinstance(source, list | tuple):
            return np.asarray(source, dtype=np.float64)
        raise ValueError(
            'expected an array, a .npy path, a callable or "module:function", got '
            f"{type(source).__name__}"
        )

    @field_validator("source", "q", mode="before")
    @classmethod
    def _check_trust(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str) and ":" in value and not value.endswith(NUMPY):
            require_trusted_function(value, str(info.field_name), info)
        return value

    @field_serializer("source", "q")
    def _serialise(self, value: Any) -> Any:
        return None if value is None else _digest(value)

    def build(self, spec: Spec, seed: Seed = 0) -> GivenRatioBackend:
        return GivenRatioBackend(self, spec, seed)


class GivenRatioBackend(GoesOn):
    """Given ratios behind the interface of a backend. Nothing is trained: `fit` needs no steps, and
    `update` gives diagnostics only.
    """

    kind: ClassVar[str] = "given"
    trains: ClassVar[bool] = False
    starts_from: ClassVar[FlowStart] = "initial"
    discount: ClassVar[None] = None
    temperature: ClassVar[None] = None
    has_value: ClassVar[bool] = False
    warm_up: ClassVar[int] = 0
    batch_size: ClassVar[int] = 512  # of the diagnostics

    def __init__(self, config: GivenRatio, spec: Spec, seed: Seed):
        self.config = config
        self.spec = spec
        self.seed = plain_seed(seed)
        self.step = 0
        self.device = torch.device("cpu")
        self.ratio_kind: RatioKind = config.ratio_kind
        own_q = import_function(config.q, "q") if isinstance(config.q, str) else config.q
        together = own_q is not None and not isinstance(self.seed, int)
        self.q: QCallable | None = _OfEverySeed(own_q) if together else own_q
        self._function: RatioFunction | None = None
        self._log_weights: Tensor | None = None
        source = config.source
        if isinstance(source, str) and source.endswith(NUMPY):
            source = _read_npy(Path(source))
        elif isinstance(source, str) and source == UNIFORM:
            source = np.ones(spec.source_rows)
        elif isinstance(source, str):
            source = import_function(source, "source")
        if isinstance(source, np.ndarray):
            # A weight of 0 becomes -inf, which extractors floor or take as no weight at all.
            self._log_weights = _check_weights(source, spec.source_rows).log()
        else:
            self._function = source

    @property
    def has_q(self) -> bool:
        return self.q is not None

    def to(self, device: torch.device | str) -> Self:
        self.device = torch.device(device)
        if self._log_weights is not None:
            self._log_weights = self._log_weights.to(device)
        return self

    def rewards(self, raw: Tensor) -> Tensor:
        """Rewards as they are."""
        return raw

    def log_ratio(self, batch: Batch) -> Tensor:
        """log w of each row, (*seeds, B); -inf where w = 0."""
        if self._log_weights is not None:
            return self._log_weights[batch.rows.to(self._log_weights.device)]
        assert self._function is not None
        ratio = torch.as_tensor(
            self._function(batch), dtype=torch.float32, device=batch.rewards.device
        )
        if ratio.shape != batch.rewards.shape:
            raise ValueError(
                f"expected the ratio function to return shape {tuple(batch.rewards.shape)}, "
                f"got {tuple(ratio.shape)}"
            )
        if not bool((torch.isfinite(ratio) & (ratio >= 0)).all()):
            raise ValueError(
                "the ratio function returned a negative, infinite or NaN ratio: ratios are "
                "finite and >= 0"
            )
        return ratio.log()

    def ratio(self, batch: Batch) -> Tensor:
        """w of each row, (*seeds, B)."""
        return torch.exp(self.log_ratio(batch))

    def value(self, observations: Tensor) -> Tensor:
        """There are none."""
        raise TypeError("given ratios come without values: has_value is False")

    def until(self, step: int) -> Self:
        """Nothing depends on when training ends."""
        return self

    def prepare(self, data: Transitions) -> None:
        """Nothing to prepare."""

    def check_trained(self, data: Transitions) -> None:
        """There are no values to check."""

    def identity(self, data: Transitions) -> str:
        """Names the ratios of these data, and Q, by their values: a function or a file may change
        without its name.
        """
        digest = hashlib.blake2b(digest_size=16)
        for batch in data.batches(65_536):
            digest.update(self.log_ratio(batch).cpu().numpy().tobytes())
        if self.q is not None:
            with torch.no_grad():
                batch = data.sample(NAMED_BY, seed=self.seed, step=0)
                # At other actions too, because that is where an actor asks.
                for actions in (batch.actions, -batch.actions):
                    values = self.q(batch.observations, actions)
                    digest.update(values.cpu().numpy().tobytes())
        return digest.hexdigest()

    def update(self, batch: Batch, *, step: int) -> loop.Metrics:
        """Nothing to train: diagnostics of the given ratios. Raises ValueError unless `step` is
        the next one.
        """
        if step != self.step:
            raise ValueError(f"expected update(batch, step={self.step}), got step={step}")
        self.step = step + 1
        return ratio_metrics(self.log_ratio(batch), batch.weights)

    def state(self) -> dict[str, Tensor]:
        """Nothing is trained, so nothing is kept but the step."""
        return {"step": torch.tensor(self.step, dtype=torch.int64, device="cpu")}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.step = int(state["step"])

    def select(self, index: int) -> Self:
        """The same ratios, for one seed of several."""
        seed = self.seed if isinstance(self.seed, int) else self.seed[index]
        part = type(self)(self.config, self.spec, seed).to(self.device)
        part.step = self.step
        return part


def _read_npy(path: Path) -> NDArray[Any]:
    if not path.exists():
        raise ValueError(
            f"source = {str(path)!r} does not exist: expected a .npy file with one weight per "
            "source row"
        )
    weights: NDArray[Any] = np.load(path, allow_pickle=False)
    return weights


def _check_weights(weights: NDArray[Any], rows: int) -> Tensor:
    if weights.shape != (rows,):
        raise ValueError(
            f"expected one weight per source row, shape ({rows},), got {weights.shape}: "
            "dropped rows of the source count too"
        )
    bad = ~np.isfinite(weights) | (weights < 0)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"weights must be finite and >= 0: {int(bad.sum())} are not, the first is "
            f"{weights[row]} in row {row}"
        )
    if not (weights > 0).any():
        raise ValueError("all weights are 0: there is no policy to extract")
    return torch.as_tensor(weights, dtype=torch.float32, device="cpu")


if TYPE_CHECKING:  # read by mypy: given ratios are a source of ratios

    def _as_a_source(given: GivenRatioBackend) -> RatioSource:
        return given
