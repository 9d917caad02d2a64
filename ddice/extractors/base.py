"""What every extractor has in common: what it reads of a backend, and the policy it gives."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import Self

from ddice.core.config import Config
from ddice.core.randomness import Seed
from ddice.data import Batch, Spec, Transitions
from ddice.diffusion.guidance import Guidance
from ddice.diffusion.samplers import AnySelection, Diffusion, MeanSelection, Sampler
from ddice.diffusion.samplers.reference import ABOUT_CLIPPING, CLIP_DENOISED
from ddice.diffusion.solvers import PUBLISHED, AnySolver
from ddice.diffusion.trained_prior import TrainedPrior
from ddice.parts import loop
from ddice.parts.part import Optimizer, Part, effective_sample_size, weighted_mean
from ddice.parts.ratio_source import RatioSource
from ddice.parts.stage import Stage, Update, alone, run_stage
from ddice.parts.tabulated import tabulated
from ddice.policies.engines import QCallable
from ddice.policies.policy import (
    ABOUT_NOISE_SCALE,
    Clipping,
    Policy,
    check_noise,
    check_q,
    check_selection,
    make_policy,
)


class ExtractorConfig(Config, abstract=True):
    """What all extractors share. One of your own gives a `kind` and `build`; one whose policy draws
    several candidates per decision derives from `SelectingConfig`.
    """

    kind: str

    needs_prior: ClassVar[bool] = True
    needs_ratio: ClassVar[bool] = True
    needs_q: ClassVar[bool] = False  # in training; several candidates need one to act
    acting_fields: ClassVar[tuple[str, ...]] = ()  # not read in training

    @property
    def reads_backend(self) -> bool:
        """Whether training reads anything of a backend."""
        return self.needs_ratio or self.needs_q

    @abstractmethod
    def build(self, spec: Spec, seed: Seed = 0, prior: TrainedPrior | None = None) -> Extractor:
        """The trainable part."""

    def check(self, prior: TrainedPrior | None, backend: RatioSource | None) -> None:
        """Raise ValueError, before any training, when prior and backend cannot be put together with
        this extractor.

        Raises TypeError for a configuration in the place of a trained part.
        """
        for name, part in (("prior", prior), ("backend", backend)):
            if isinstance(part, Config):
                raise TypeError(
                    f"expected {name} to be a trained part, got the configuration "
                    f"{type(part).__name__}(...): call .fit(data, ...) first"
                )
        if self.needs_prior and prior is None:
            raise ValueError(
                f"{type(self).__name__} needs a prior: train one with "
                "DiffusionPrior().fit(data, steps=...)"
            )
        if self.needs_ratio and backend is None:
            hint = "PiecewiseF().fit(data, steps=...), or GivenRatio(source=...).fit(data)"
            raise ValueError(f"{type(self).__name__} needs a backend for its ratios: {hint}")
        if self.needs_q and (backend is None or not backend.has_q):
            hint = "PiecewiseF().fit(data, steps=...), or GivenRatio(source=..., q=...).fit(data)"
            raise ValueError(
                f"{type(self).__name__} needs a backend with a Q, which it learns from: {hint}"
            )
        if prior is not None and backend is not None:
            check_same_spaces(prior.spec, backend.spec)

    def policy(
        self,
        spec: Spec,
        sampler: Sampler,
        *,
        q: QCallable | None,
        notes: Mapping[str, str],
    ) -> Policy:
        """The policy of a trained sampler: here one action per state, of which none is chosen."""
        return make_policy(spec, sampler, candidates=1, selection=MeanSelection(), q=q, notes=notes)

    def fit(
        self,
        data: Transitions,
        *,
        prior: TrainedPrior | None = None,
        backend: RatioSource | None = None,
        steps: int | None = None,
        seed: Seed = 0,
        device: str | torch.device = "auto",
        progress: bool = True,
        on_step: loop.OnStep | None = None,
        checkpoint: str | Path | None = None,
    ) -> Any:
        """Train for `steps` steps and return the policy; a list of one policy per seed when `seed`
        is a sequence. See `GoesOn.fit` for the arguments.
        """
        self.check(prior, backend)
        if prior is not None:
            check_same_spaces(prior.spec, data.spec)
        part = self.build(data.spec, seed, prior).to(loop.resolve_device(device))
        part.fit(
            data,
            backend=backend,
            steps=steps,
            progress=progress,
            on_step=on_step,
            checkpoint=checkpoint,
        )
        notes = {} if backend is None else {"ratio": backend.ratio_kind}
        if isinstance(part.seed, int):
            return part.policy(q=None if backend is None else backend.q, notes=notes)
        policies = []
        for index in range(len(part.seed)):
            q = None if backend is None else backend.select(index).q
            policies.append(part.select(index).policy(q=q, notes=notes))
        return policies


class SelectingConfig(ExtractorConfig, abstract=True):
    """The fields of extractors whose policy draws K candidates per decision and lets Q choose."""

    candidates: int = Field(
        1, ge=1, description="K, actions sampled per decision; more than one needs a Q"
    )
    selection: AnySelection = Field(
        MeanSelection(), description="how Q chooses among the candidates"
    )
    clip_candidates: Clipping = Field(
        "before_scoring", description="map all candidates into the action bounds, or the chosen one"
    )
    noise_scale: float = Field(1.0, ge=0, description=ABOUT_NOISE_SCALE)

    acting_fields: ClassVar[tuple[str, ...]] = (
        "candidates", "selection", "clip_candidates", "noise_scale", "guidance_scale", "solver",
        "clip_denoised",
    )  # fmt: skip

    def check(self, prior: TrainedPrior | None, backend: RatioSource | None) -> None:
        super().check(prior, backend)
        check_q(self.candidates, backend is not None and backend.has_q)
        check_noise(self.candidates, self.noise_scale)
        if backend is not None and backend.has_q:
            check_selection(self.selection, self.candidates, backend.q)

    def policy(
        self,
        spec: Spec,
        sampler: Sampler,
        *,
        q: QCallable | None,
        notes: Mapping[str, str],
    ) -> Policy:
        return make_policy(
            spec,
            sampler,
            candidates=self.candidates,
            selection=self.selection,
            clip_candidates=self.clip_candidates,
            noise_scale=self.noise_scale,
            q=q,
            notes=notes,
        )


class DiffusionConfig(SelectingConfig, abstract=True):
    """The fields of extractors whose policy is a diffusion model."""

    solver: AnySolver = Field(PUBLISHED, description="sampler of the diffusion ODE")
    clip_denoised: bool = Field(CLIP_DENOISED, description=ABOUT_CLIPPING)

    def diffusion(
        self, prior: TrainedPrior, guidance: Guidance | None = None, guidance_scale: float = 1.0
    ) -> Diffusion:
        """The configuration of the policy's sampler."""
        return Diffusion(
            prior=prior.config,
            guidance=guidance,
            guidance_scale=guidance_scale,
            solver=self.solver,
            clip_denoised=self.clip_denoised,
        )


def check_same_spaces(first: Spec, second: Spec) -> None:
    """Raise ValueError unless two parts see the same observations and actions."""
    for name in ("observations", "actions"):
        one, two = getattr(first, name), getattr(second, name)
        if one != two:
            raise ValueError(
                f"the parts were trained on data with different {name}: {one} and {two}. Train "
                "them on the same dataset"
            )


class Extractor(Part):
    """What a backend has learned in, a policy out. Prior and backend are read, never trained."""

    config: ExtractorConfig
    prior: TrainedPrior | None
    log_mean: Tensor

    def __init__(
        self,
        config: ExtractorConfig,
        optimizer: Optimizer,
        batch_size: int,
        spec: Spec,
        seed: Seed,
        prior: TrainedPrior | None,
    ):
        super().__init__(config, optimizer, batch_size, spec, seed)
        if prior is not None and prior.seed_shape != self.seed_shape:
            raise ValueError(
                f"the prior was trained with seed {prior.seed!r}: give the extractor as many "
                "seeds, or a prior.select(i)"
            )
        # Not a submodule: its parameters are neither trained nor saved here.
        object.__setattr__(self, "prior", prior)
        nothing_yet = torch.full(self.seed_shape, -torch.inf, dtype=torch.float32, device="cpu")
        self.register_buffer("log_mean", nothing_yet)

    def rebuild(self, index: int, seed: int) -> Self:
        prior = None if self.prior is None else self.prior.select(index)
        part: Self = self.config.build(self.spec, seed=seed, prior=prior)  # type: ignore[assignment]
        return part

    @abstractmethod
    def sampler(self) -> Sampler:
        """The sampler of the policy, with the live networks."""

    @abstractmethod
    def update(self, batch: Batch, *, step: int, log_ratio: Tensor | None = None) -> loop.Metrics:
        """One step on dataset actions with their log ratios (*seeds, B)."""

    def learn_from(self, batch: Batch, backend: RatioSource | None, *, step: int) -> loop.Metrics:
        """One step with what this extractor reads of a backend: its ratios, for most."""
        # Ratios are data here: a backend computes them without gradients and is not trained on.
        log_ratio = None if backend is None else backend.log_ratio(batch)
        return self.update(batch, step=step, log_ratio=log_ratio)

    def policy(self, q: QCallable | None = None, notes: Mapping[str, str] | None = None) -> Policy:
        """What has been learned so far, as a policy of its own. Raises ValueError when
        candidates > 1 and q is None.
        """
        if self.seed_shape:
            raise ValueError(
                "several seeds were trained together: take one with select(i), then its policy"
            )
        notes = {"extractor": self.kind, **(notes or {})}
        policy = self.config.policy(self.spec, self.sampler(), q=q, notes=notes)
        return policy.to(self.device)

    @torch.no_grad()
    def follow_mean(self, log_ratio: Tensor, weights: Tensor, step: int) -> Tensor:
        """Update and return the running mean of the ratios, as a logarithm (*seeds): the mean of
        all at first, of the last 100 steps later.
        """
        # m <- (1 - rate) m + rate (sum_i p_i w_i / sum_i p_i), in logarithms: ratios may lie
        # beyond the range of float32. A batch mean alone would make the weights of a row depend on
        # its neighbours. Shapes: log_ratio and weights (*seeds, B), all else (*seeds).
        rate = max(0.01, 1 / (1 + step))
        total = torch.logsumexp(log_ratio + weights.log(), -1)
        batch = total - weights.sum(-1).log() + math.log(rate)
        # The first step has no past: log(1 - rate) would be log 0.
        mixed = batch if rate == 1 else torch.logaddexp(self.log_mean + math.log(1 - rate), batch)
        self.log_mean.copy_(mixed)
        # All ratios may have been zero so far: log w - log mean would be -inf + inf = NaN. e^-80
        # is near the end of float32.
        return mixed.clamp(min=-80.0)

    def identity(self, data: Transitions) -> str:
        """See `Part.identity`. Rewards are not read, nor what only acting reads; the prior is."""
        own = self.config.digest(
            without=self.config.acting_fields,
            part=type(self).__name__,
            seed=self.seed,
            data=data.spec.behaviour_fingerprint,
        )
        if self.prior is None:
            return own
        return f"{own}+{self.prior.identity(data)}@{self.prior.step}"

    def stage(
        self, backend: RatioSource | None, *, steps: int | None, name: str | None = None
    ) -> Stage:
        """The next `steps` steps with what `backend` has learned, which is not trained. Raises
        ValueError where Q is needed and was never trained.
        """
        if self.config.needs_q and backend is not None and backend.trains and not backend.step:
            raise ValueError(
                f"{type(self.config).__name__} learns from the Q of this {backend.kind}, which has "
                "done no step of training: train it first, backend.fit(data, steps=...), or both "
                'together, schedule="joint"'
            )
        stage = alone(self, steps=steps, name=name)
        if backend is None:
            return dataclasses.replace(stage, update=learning_from(self, None))

        def update_over(data: Transitions) -> Update:
            # A table pays where the steps ask for more rows than there are. By the stage alone, so
            # that a resumed one reads what it would have read.
            if (stage.stop - stage.start) * stage.batch_size <= len(data):
                return learning_from(self, backend)
            size, seeds = stage.batch_size, self.seed_shape
            return learning_from(self, tabulated(backend, data, batch_size=size, seed_shape=seeds))

        return dataclasses.replace(
            stage,
            update=learning_from(self, backend),
            update_over=update_over,
            reads=(backend,),
        )

    def fit(
        self,
        data: Transitions,
        *,
        backend: RatioSource | None = None,
        steps: int | None = None,
        progress: bool = True,
        on_step: loop.OnStep | None = None,
        checkpoint: str | Path | None = None,
    ) -> Self:
        """Train for `steps` more steps with what `backend` has learned, which is not trained; see
        `GoesOn.fit`.
        """
        run_stage(
            self.stage(backend, steps=steps),
            data.to(self.device),
            progress=progress,
            on_step=on_step,
            checkpoint=checkpoint,
        )
        return self


def learning_from(extractor: Extractor, backend: RatioSource | None) -> Update:
    """The update of an extractor with what `backend` has learned, as a function of batch and
    step.
    """
    return lambda batch, step: extractor.learn_from(batch, backend, step=step)


def relative_metrics(
    log_ratio: Tensor, floored: Tensor, capped: Tensor, weights: Tensor
) -> dict[str, Tensor]:
    """Diagnostics of the ratios that reached an extractor: effective sample size, and how often
    floor and cap acted.
    """
    return {
        "effective_sample_size": effective_sample_size(log_ratio, weights),
        "floor_rate": weighted_mean(floored.to(weights.dtype), weights),
        "cap_rate": weighted_mean(capped.to(weights.dtype), weights),
    }
