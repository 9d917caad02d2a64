"""Policies: everything needed to act, and nothing else."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from pydantic import Field
from torch import Tensor, nn

from ddice.core.config import Config
from ddice.core.randomness import generator, plain_seed
from ddice.data import Spec
from ddice.dice_backends.q_function import QConfig, QFunction
from ddice.diffusion.samplers import (
    AnySampler,
    AnySelection,
    Diffusion,
    DiffusionSampler,
    MeanSelection,
    Sampler,
    Selection,
)
from ddice.diffusion.solvers import Solver
from ddice.parts.loop import resolve_device
from ddice.policies.engines import (
    REFERENCE,
    Choice,
    EngineDtype,
    EngineName,
    EngineSettings,
    Procedure,
    QCallable,
    make_engine,
)
from ddice.policies.saved import (
    WHOLE,
    SavedPolicy,
    policy_folder,
    policy_from_bytes,
    read_policy,
    write_policy,
)

Clipping = Literal["before_scoring", "after_scoring"]
ABOUT_NOISE_SCALE = (
    "factor on the noise that candidates start from: 1 samples the policy, less keeps to its "
    "middle, 0 plays the middle itself"
)


class PolicyConfig(Config):
    """What is saved of a policy beside the spec and the tensors."""

    sampler: AnySampler
    candidates: int = Field(1, ge=1, description="K, actions sampled per decision")
    selection: AnySelection = MeanSelection()
    clip_candidates: Clipping = "before_scoring"
    noise_scale: float = Field(1.0, ge=0, description=ABOUT_NOISE_SCALE)
    q: QConfig | Literal["given"] | None = None
    notes: dict[str, str] = Field(default_factory=dict, description="where the policy comes from")


def check_q(candidates: int, has_q: bool) -> None:
    """Raise ValueError when K > 1 candidates were to be ranked without a Q."""
    if candidates > 1 and not has_q:
        raise ValueError(
            f"candidates = {candidates} needs a Q to choose among them and there is none: give "
            "one (of a backend that has it, or a callable of your own), or use candidates=1"
        )


def check_noise(candidates: int, noise_scale: float) -> None:
    """Raise ValueError when K > 1 candidates were to start from no noise at all."""
    if candidates > 1 and not noise_scale:
        raise ValueError(
            f"with noise_scale = 0 all {candidates} candidates are the same action: use "
            "candidates=1, or a noise_scale above 0"
        )


def check_sampler(sampler: Sampler, candidates: int, noise_scale: float) -> None:
    """Raise ValueError for what a sampler that reads no noise cannot do."""
    if not sampler.reads_noise and (candidates > 1 or noise_scale != 1):
        raise ValueError(
            f"the sampler {sampler.config.kind!r} gives one action per state, whatever the noise: "
            f"use candidates=1 and noise_scale=1, got {candidates} and {noise_scale:g}"
        )


def check_selection(selection: Selection, candidates: int, q: QCallable | None) -> None:
    """Raise ValueError when K > 1 candidates were to be ranked by a rule that compares more members
    than the critic has. How many a callable of the user's has shows at its first call.
    """
    if candidates > 1 and isinstance(q, QFunction):
        selection.check_members(q.critic.members[-1])


def require_finite_weights(sampler: Sampler, q: QCallable | None) -> None:
    """Raise ValueError, naming them, for weights that are NaN or infinite: some engines would play
    an action in spite of them.
    """
    parts = {"sampler": sampler} | ({"q": q} if isinstance(q, QFunction) else {})
    for part, module in parts.items():
        for name, weights in module.state_dict().items():
            if not torch.isfinite(weights).all().item():
                raise ValueError(
                    f"the weights {part}.{name} hold NaN or infinity: training diverged, or they "
                    "were damaged before they were saved; train again"
                )


class Policy:
    """observation -> K candidates -> the bounds -> selection by Q -> an action in the
    environment's units.
    """

    def __init__(
        self,
        config: PolicyConfig,
        spec: Spec,
        sampler: Sampler,
        q: QCallable | None,
        settings: EngineSettings = REFERENCE,
    ):
        check_sampler(sampler, config.candidates, config.noise_scale)
        check_q(config.candidates, q is not None)
        check_selection(config.selection, config.candidates, q)
        check_noise(config.candidates, config.noise_scale)
        self.config, self.spec, self.sampler = config, spec, sampler.eval().requires_grad_(False)
        self.q = q.eval().requires_grad_(False) if isinstance(q, QFunction) else q
        require_finite_weights(self.sampler, self.q)
        self._limits = torch.tensor(spec.limits, dtype=torch.float32, device="cpu")
        self.settings, self.engine = settings, make_engine(settings, self.procedure)
        # Counted on the device, so that acting need not wait for it; under a lock, because several
        # threads may act with one policy.
        self._clipped, self._seen, self._counting = (
            torch.zeros((), device=self.device, dtype=torch.float32),
            0,
            threading.Lock(),
        )

    @property
    def procedure(self) -> Procedure:
        """What engines are made from."""
        config = self.config
        return Procedure(
            self.sampler,
            self.q,
            config.candidates,
            config.selection,
            config.clip_candidates == "before_scoring",
        )

    def compile(
        self,
        engine: EngineName = "auto",
        *,
        batch_sizes: Sequence[int] = (1,),
        dtype: EngineDtype = "float32",
        rows_per_call: int | None = None,
    ) -> Policy:
        """A new policy that makes the same decisions faster; "auto" takes the fastest engine that
        covers this policy on its device.

        batch_sizes: numbers of states that will be asked for at once; engines with fixed shapes
        prepare them. dtype: of the arithmetic; "tf32" and "float16" are for engine="fused".
        `engine.name` of the result says which; a faster engine that cannot be had is named in a
        warning, with what is missing. rows_per_call: more states x candidates than this are worked
        off in chunks. An engine is never saved with a policy. Raises ValueError where a named
        engine does not cover this policy, ImportError where its package is missing.
        """
        settings = EngineSettings(
            engine=engine, batch_sizes=tuple(batch_sizes), dtype=dtype, rows_per_call=rows_per_call
        )
        return Policy(self.config, self.spec, *self._networks(), settings)

    def with_settings(
        self,
        *,
        solver: Solver | None = None,
        guidance_scale: float | None = None,
        candidates: int | None = None,
        selection: Selection | None = None,
        noise_scale: float | None = None,
    ) -> Policy:
        """A new policy of the same networks that acts otherwise: nothing is trained for these. What
        is None stays.

        solver: of the diffusion ODE, such as `ddice.diffusion.solvers.FEW_STEPS`.
        guidance_scale: kappa. candidates: K, up or down: a policy keeps the Q that it was given.
        selection: how Q chooses. noise_scale: factor on the noise of candidates. Raises ValueError
        for a solver or a guidance scale of a policy that has no use for it, and for several
        candidates without a Q or without noise.
        """
        acting = {
            key: value
            for key, value in (
                ("candidates", candidates),
                ("selection", selection),
                ("noise_scale", noise_scale),
            )
            if value is not None
        }
        sampling = {
            key: value
            for key, value in (("solver", solver), ("guidance_scale", guidance_scale))
            if value is not None
        }
        sampler, q = self._networks()
        if sampling:
            if not isinstance(sampler, DiffusionSampler) or (
                "guidance_scale" in sampling and sampler.guidance is None
            ):
                raise ValueError(
                    f"this policy has no {next(reversed(sampling))} to change: it samples without"
                )
            sampler.config = Diffusion.model_validate({**dict(sampler.config), **sampling})
        config = PolicyConfig.model_validate(
            {**dict(self.config), **acting, "sampler": sampler.config}
        )
        return Policy(config, self.spec, sampler, q, self.settings)

    def _networks(self) -> tuple[Sampler, QCallable | None]:
        """Copies of the sampler and of Q; a callable of the user's is not copied."""
        return copy.deepcopy(self.sampler), copy.deepcopy(self.q) if isinstance(
            self.q, QFunction
        ) else self.q

    def __deepcopy__(self, memo: dict[int, Any]) -> Policy:
        # Else `copy` would take the way of pickle, through the bytes of a file.
        return Policy(self.config, self.spec, *self._networks(), self.settings)

    @property
    def device(self) -> torch.device:
        return next(self.sampler.parameters()).device

    @property
    def clip_rate(self) -> float:
        """The share of all candidates so far that left the action bounds before they were mapped
        back.
        """
        return float(self._clipped) / max(self._seen, 1)

    def to(self, device: str | torch.device) -> Policy:
        """The same policy on another device ("auto" is CUDA where there is one). Stays, and
        raises ValueError, where its engine cannot run there.
        """
        before = self.device
        self._move(resolve_device(device))
        try:
            self.engine = make_engine(self.settings, self.procedure)
        except Exception:
            self._move(before)
            raise
        self._clipped = self._clipped.to(self.device)
        return self

    def _move(self, device: torch.device) -> None:
        self.sampler.to(device)
        if isinstance(self.q, QFunction):
            self.q.to(device)

    def _observations(self, observation: Any) -> tuple[Tensor, bool, bool]:
        """A native observation -> (B, S) float32 where it is, whether it was a single one, and
        whether it came in tensors. The engine takes it to the device.
        """
        flat = self.spec.observations.flatten(observation)
        # a tensor stays where it is: the engine takes it to the device
        as_tensor = isinstance(flat, Tensor)
        where = flat.device if as_tensor else "cpu"
        tensor = torch.as_tensor(flat, dtype=torch.float32, device=where)
        if tensor.ndim not in (1, 2):
            raise ValueError(
                f"expected one observation or a batch of them, got {tensor.ndim - 1} batch "
                "axes: flatten them first"
            )
        if tensor.ndim == 2 and not len(tensor):
            raise ValueError("expected at least one observation, got an empty batch")
        # A single number comes from the device, and each is looked at only on suspicion.
        near = tensor.abs() <= self._limits.to(tensor.device)  # False for NaN
        if not near.all().item():
            self._refuse(tensor, near)
        single = tensor.ndim == 1
        return (tensor[None] if single else tensor), single, as_tensor

    @staticmethod
    def _refuse(
        observations: Tensor,  # (S,) or (B, S)
        near: Tensor,  # the same, bool
    ) -> NoReturn:
        """Raise ValueError for the first number that cannot be acted on."""
        shape = tuple(observations.shape)
        if len(bad := torch.nonzero(~torch.isfinite(observations))):
            raise ValueError(
                f"the observation holds NaN or infinity at {bad[0].tolist()} of shape {shape}: a "
                "policy cannot act on it"
            )
        raise ValueError(
            f"the observation at {torch.nonzero(~near)[0].tolist()} of shape {shape} lies further "
            "from the data than float32 can compute with: is it in other units?"
        )

    def _noise(
        self, batch: int, deterministic: bool, seed: int | Sequence[int] | None
    ) -> tuple[Tensor, Tensor | None]:
        """Latents (B, K, A), scaled by `noise_scale`, and, unless deterministic, uniform numbers
        (B,) for a selection that samples.
        """
        latents, uniform = self._latents(batch, deterministic, seed)
        return latents * self.config.noise_scale, uniform

    def _latents(
        self, batch: int, deterministic: bool, seed: int | Sequence[int] | None
    ) -> tuple[Tensor, Tensor | None]:
        """The same, unscaled."""
        shape, sampled, device = (
            (self.config.candidates, self.spec.actions.size),
            self.config.selection.samples,
            self.device,
        )
        if deterministic:
            return self.sampler.latents(*shape).to(device).expand(batch, *shape), None
        seeds = None if seed is None else plain_seed(seed)
        if seeds is None or isinstance(seeds, int):
            if seeds is None:
                source = torch.Generator(device)
                source.seed()  # of its own: torch.seed() would reseed the user's global generator
            else:
                source = generator(seeds, "act", 0, device)
            # The uniform numbers come after the noise: the rule of selection changes no candidate.
            noise = torch.randn(batch, *shape, generator=source, device=device, dtype=torch.float32)
            return noise, torch.rand(
                batch, generator=source, device=device, dtype=torch.float32
            ) if sampled else None
        if len(seeds) != batch:
            raise ValueError(
                f"expected one seed, or one for each of the {batch} observations, got {len(seeds)}"
            )
        # On the CPU, whose numbers are the same wherever the policy acts.
        sources = [generator(each, "act", 0) for each in seeds]
        noise = torch.stack(
            [
                torch.randn(shape, generator=source, dtype=torch.float32, device="cpu")
                for source in sources
            ]
        )
        return noise.to(device), torch.cat(
            [
                torch.rand(1, generator=source, dtype=torch.float32, device="cpu")
                for source in sources
            ]
        ).to(device) if sampled else None

    def decide(self, observations: Tensor, noise: Tensor, uniform: Tensor | None = None) -> Choice:
        """Observations (B, S) and noise (B, K, A) -> the chosen actions (B, A) in [-1, 1], all
        candidates as sampled, and which were chosen.

        uniform (B,): random numbers of a softmax selection; without them the argmax is taken.
        Raises ValueError for inputs of different B.
        """
        choice = self.engine.decide(observations, noise, uniform)
        # (B, K)
        clipped = (choice.candidates.abs() > 1).any(-1)
        with self._counting:
            self._clipped, self._seen = self._clipped + clipped.sum(), self._seen + clipped.numel()
        return choice

    def choose(
        self, observation: Any, deterministic: bool = False, seed: int | Sequence[int] | None = None
    ) -> Choice:
        """All that `act` decides between, in [-1, 1]: the same candidates, and the same chosen."""
        observations, _, _ = self._observations(observation)
        return self.decide(observations, *self._noise(len(observations), deterministic, seed))

    def act(
        self, observation: Any, deterministic: bool = False, seed: int | Sequence[int] | None = None
    ) -> Any:
        """One observation -> (A,), a batch -> (B, A); numpy in, numpy out; tensor in, tensor out;
        the environment's dict of either.

        deterministic: the same latents for every row, and argmax, so that a row's action does not
        depend on its batch. seed: one number, or one per row (row i then depends on seed[i] alone).
        Raises ValueError for a wrong shape, NaN or infinity, and rather than return NaN.
        """
        observations, single, as_tensor = self._observations(observation)
        noise, uniform = self._noise(len(observations), deterministic, seed)
        unit: Any = self.decide(observations, noise, uniform).actions
        if math.isnan(unit.sum().item()):
            row = int(unit.isnan().any(-1).nonzero()[0])
            raise ValueError(
                f"the policy has no action for row {row} but NaN: the observation lies far "
                "outside its data, or its training diverged"
            )
        actions = self.spec.actions.from_unit(unit if as_tensor else unit.cpu().numpy())
        return actions[0] if single else actions

    def predict(
        self,
        observation: Any,
        state: None = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[Any, None]:
        """(act(observation), None): the habit of Stable-Baselines3."""
        return self.act(observation, deterministic=deterministic), None

    def save(self, path: str | Path) -> None:
        """Write `policy.safetensors`, which is all of it, and `policy.json`, which shows it, into
        the folder `path`. A Q that is the user's own callable is noted, not saved.
        """
        write_policy(Path(path), self._saved())

    def _saved(self) -> SavedPolicy:
        tensors = {f"sampler.{name}": value for name, value in self.sampler.state_dict().items()}
        if isinstance(self.q, QFunction):
            tensors |= {f"q.{name}": value for name, value in self.q.state_dict().items()}
        sections = {"policy": self.config, "spec": self.spec}
        description = {name: part.model_dump(mode="json") for name, part in sections.items()}
        return SavedPolicy(description, tensors)

    def __reduce__(self) -> tuple[Any, ...]:
        """For worker processes: what `save` writes, as bytes, and a Q of the user's own as it is.
        The other side acts on the same device, through the same engine.
        """
        own = None if isinstance(self.q, QFunction) else self.q
        return _from_bytes, (self._saved().to_bytes(), str(self.device), own, self.settings)


def make_policy(
    spec: Spec,
    sampler: Sampler,
    *,
    candidates: int,
    selection: Selection,
    clip_candidates: Clipping = "before_scoring",
    noise_scale: float = 1.0,
    q: QCallable | None,
    notes: Mapping[str, str] | None = None,
) -> Policy:
    """A policy that owns copies of the networks, so that further training does not change it. It
    keeps the Q that it is given, which one candidate does not need, so that K may be raised later.
    """
    check_q(candidates, q is not None)
    own_q = copy.deepcopy(q) if isinstance(q, QFunction) else q
    kind: QConfig | Literal["given"] | None = None
    if own_q is not None:
        kind = own_q.config if isinstance(own_q, QFunction) else "given"
    config = PolicyConfig(
        sampler=sampler.config,
        candidates=candidates,
        selection=selection,
        clip_candidates=clip_candidates,
        noise_scale=noise_scale,
        q=kind,
        notes=dict(notes or {}),
    )
    return Policy(config, spec, copy.deepcopy(sampler), own_q)


def load_policy(
    path: str | Path,
    device: str | torch.device = "auto",
    q: QCallable | None = None,
    engine: EngineName = "reference",
    trust: Sequence[str] = (),
) -> Policy:
    """Read a policy that `Policy.save` wrote, from its folder or that of its run; nothing is
    unpickled. `q` is needed where the saved one was the user's own callable.

    engine: as for `Policy.compile`. trust: modules of your own whose classes the policy is made of;
    they are imported. Those of installed plugins are trusted.

    Raises FileNotFoundError without the files, ValueError for truncated, foreign or newer ones,
    and for classes of modules that are not trusted.
    """
    folder = policy_folder(path)
    policy = _made(read_policy(folder), folder / WHOLE, q, trust).to(device)
    return policy if engine == "reference" else policy.compile(engine)


def _from_bytes(
    content: bytes, device: str, q: QCallable | None, settings: EngineSettings
) -> Policy:
    policy = _made(policy_from_bytes(content), Path("the pickled policy"), q).to(device)
    # the engine at last: some can be had on their device only
    return Policy(policy.config, policy.spec, policy.sampler, policy.q, settings)


def _made(saved: SavedPolicy, path: Path, q: QCallable | None, trust: Sequence[str] = ()) -> Policy:
    config = PolicyConfig.read(saved.description["policy"], trust=trust)
    spec = Spec.model_validate(saved.description["spec"])
    sampler = config.sampler.build(spec)
    _load(sampler, saved.tensors, "sampler.", path)
    if isinstance(config.q, QConfig):
        own = config.q.build(spec)
        _load(own, saved.tensors, "q.", path)
        q = own
    # One candidate needs no Q, so that such a policy loads without its author's callable.
    elif config.q == "given" and q is None and config.candidates > 1:
        raise ValueError(
            "this policy selects by a callable of its author's, which is not saved: give it "
            "again, load_policy(path, q=...)"
        )
    return Policy(config, spec, sampler, q)


def _load(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str, path: Path) -> None:
    own = {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
    try:
        module.load_state_dict(own)
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not hold the tensors of the policy that it describes: they come from "
            f"different policies ({error})"
        ) from error
