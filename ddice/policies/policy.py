"""Policies: everything needed to act, and nothing else."""

from __future__ import annotations

import copy
import json
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ddice.core.config import Config
from ddice.core.randomness import generator, plain_seed
from ddice.core.storage import SCHEMA, check_kind, load_tensors, save_tensors, write_json
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

KIND = "policy"
Clipping = Literal["before_scoring", "after_scoring"]


class PolicyConfig(Config):
    """What `policy.json` holds beside the spec."""

    sampler: AnySampler
    candidates: int = Field(1, ge=1, description="K, actions sampled per decision")
    selection: AnySelection = MeanSelection()
    clip_candidates: Clipping = "before_scoring"
    q: QConfig | Literal["given"] | None = None
    notes: dict[str, str] = Field(default_factory=dict, description="where the policy comes from")


def check_q(candidates: int, has_q: bool) -> None:
    """Raise ValueError when K > 1 candidates were to be ranked without a Q."""
    if candidates > 1 and not has_q:
        raise ValueError(
            f"candidates = {candidates} needs a Q to choose among them and this backend has "
            "none: give it one, or use candidates=1"
        )


def check_selection(selection: Selection, candidates: int, q: QCallable | None) -> None:
    """Raise ValueError when K > 1 candidates were to be ranked by a rule that compares more members
    than the critic has. How many a callable of the user's has shows at its first call.
    """
    if candidates > 1 and isinstance(q, QFunction):
        selection.check_members(q.critic.members[-1])


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
        check_q(config.candidates, q is not None)
        check_selection(config.selection, config.candidates, q)
        self.config, self.spec, self.sampler = config, spec, sampler.eval().requires_grad_(False)
        self.q = q.eval().requires_grad_(False) if isinstance(q, QFunction) else q
        self.settings, self.engine = settings, make_engine(settings, self.procedure)
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
    ) -> Policy:
        """A new policy of the same networks that acts otherwise: nothing is trained for these. What
        is None stays.

        solver: of the diffusion ODE, such as `ddice.diffusion.solvers.FEW_STEPS`.
        guidance_scale: kappa. candidates: K; a policy that was made with 1 has no Q to choose by.
        selection: how Q chooses. Raises ValueError for a solver or a scale of a policy that has no
        use for it, and for several candidates without a Q.
        """
        acting = {
            key: value
            for key, value in (("candidates", candidates), ("selection", selection))
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
            sampler.config = Diffusion.model_validate(sampler.config.model_dump() | sampling)
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

    def _observations(self, observation: Any) -> tuple[Tensor, bool]:
        """A native observation -> (B, S) float32 where it is, and whether it was a single one.
        The engine takes it to the device.
        """
        flat = self.spec.observations.flatten(observation)
        # a tensor stays where it is: the engine takes it to the device
        where = flat.device if isinstance(flat, Tensor) else "cpu"
        tensor = torch.as_tensor(flat, dtype=torch.float32, device=where)
        if tensor.ndim not in (1, 2):
            raise ValueError(
                f"expected one observation or a batch of them, got {tensor.ndim - 1} batch "
                "axes: flatten them first"
            )
        if tensor.ndim == 2 and not len(tensor):
            raise ValueError("expected at least one observation, got an empty batch")
        if not math.isfinite(tensor.sum().item()) and len(
            bad := torch.nonzero(~torch.isfinite(tensor))
        ):  # a sum may be infinite by itself
            raise ValueError(
                f"the observation holds NaN or infinity at {bad[0].tolist()} of shape "
                f"{tuple(tensor.shape)}: a policy cannot act on it"
            )
        return (tensor[None], True) if tensor.ndim == 1 else (tensor, False)

    def _noise(
        self, batch: int, deterministic: bool, seed: int | Sequence[int] | None
    ) -> tuple[Tensor, Tensor | None]:
        """Latents (B, K, A) and, unless deterministic, uniform numbers (B,) for a selection that
        samples.
        """
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
            noise = torch.randn(batch, *shape, generator=source, device=device, dtype=torch.float32)
            return noise, torch.rand(
                batch, generator=source, device=device, dtype=torch.float32
            ) if sampled else None
        if len(seeds) != batch:
            raise ValueError(
                f"expected one seed, or one for each of the {batch} observations, got {len(seeds)}"
            )
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
        clipped = (choice.candidates.abs() > 1).any(-1)
        with self._counting:
            self._clipped, self._seen = self._clipped + clipped.sum(), self._seen + clipped.numel()
        return choice

    def choose(
        self, observation: Any, deterministic: bool = False, seed: int | Sequence[int] | None = None
    ) -> Choice:
        """All that `act` decides between, in [-1, 1]: the same candidates, and the same chosen."""
        observations, _ = self._observations(observation)
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
        leaf = observation
        while isinstance(leaf, Mapping):
            leaf = next(iter(leaf.values()))
        observations, single = self._observations(observation)
        noise, uniform = self._noise(len(observations), deterministic, seed)
        unit: Any = self.decide(observations, noise, uniform).actions
        if math.isnan(unit.sum().item()):
            row = int(unit.isnan().any(-1).nonzero()[0])
            raise ValueError(
                f"the policy has no action for row {row} but NaN: the observation lies far "
                "outside its data, or its training diverged"
            )
        actions = self.spec.actions.from_unit(
            unit if isinstance(leaf, Tensor) else unit.cpu().numpy()
        )
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
        """Write `policy.json` and `policy.safetensors` into the folder `path`. A Q that is the
        user's own callable is noted, not saved.
        """
        path = Path(path)
        tensors = {f"sampler.{name}": value for name, value in self.sampler.state_dict().items()}
        if isinstance(self.q, QFunction):
            tensors |= {f"q.{name}": value for name, value in self.q.state_dict().items()}
        save_tensors(path / "policy.safetensors", KIND, tensors, {})
        content = {
            "kind": KIND,
            "schema": SCHEMA,
            "policy": self.config.model_dump(mode="json"),
            "spec": self.spec.model_dump(mode="json"),
        }
        write_json(path / "policy.json", content)


def make_policy(
    spec: Spec,
    sampler: Sampler,
    *,
    candidates: int,
    selection: Selection,
    clip_candidates: Clipping = "before_scoring",
    q: QCallable | None,
    notes: Mapping[str, str] | None = None,
) -> Policy:
    """A policy that owns copies of the networks, so that further training does not change it; Q
    is left out where one candidate needs none.
    """
    check_q(candidates, q is not None)
    own_q = copy.deepcopy(q) if isinstance(q, QFunction) else q
    used = None if candidates == 1 else own_q
    kind = None if used is None else used.config if isinstance(used, QFunction) else "given"
    config = PolicyConfig(
        sampler=sampler.config,
        candidates=candidates,
        selection=selection,
        clip_candidates=clip_candidates,
        q=kind,
        notes=dict(notes or {}),
    )
    return Policy(config, spec, copy.deepcopy(sampler), used)


def load_policy(
    path: str | Path,
    device: str | torch.device = "auto",
    q: QCallable | None = None,
    engine: EngineName = "reference",
) -> Policy:
    """Read a policy that `Policy.save` wrote; nothing is unpickled. `q` is needed where the saved
    one was the user's own callable.

    engine: as for `Policy.compile`.

    Raises FileNotFoundError without the files, ValueError for truncated, foreign or newer ones.
    """
    path = Path(path)
    if not (path / "policy.json").exists():
        raise FileNotFoundError(
            f"{path} holds no policy.json: expected a folder that policy.save(...) wrote, or a "
            "run whose training has finished"
        )
    try:
        content = json.loads((path / "policy.json").read_text())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path / 'policy.json'} is not valid JSON ({error}): the file is truncated or foreign"
        ) from error
    check_kind(path / "policy.json", content, KIND)
    if missing := [key for key in ("policy", "spec") if key not in content]:
        raise ValueError(
            f"{path / 'policy.json'} lacks {', '.join(missing)}: the file is truncated or foreign"
        )
    config, spec = (
        PolicyConfig.model_validate(content["policy"]),
        Spec.model_validate(content["spec"]),
    )
    tensors, _ = load_tensors(path / "policy.safetensors", KIND)
    sampler = config.sampler.build(spec)
    _load(sampler, tensors, "sampler.", path)
    if isinstance(config.q, QConfig):
        saved = config.q.build(spec)
        _load(saved, tensors, "q.", path)
        q = saved
    elif config.q == "given" and q is None and config.candidates > 1:
        raise ValueError(
            "this policy selects by a callable of its author's, which is not saved: give it "
            "again, load_policy(path, q=...)"
        )
    policy = Policy(config, spec, sampler, q).to(device)
    return policy if engine == "reference" else policy.compile(engine)


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
            f"{path / 'policy.safetensors'} does not fit {path / 'policy.json'}: they come "
            f"from different policies ({error})"
        ) from error
