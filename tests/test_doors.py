"""Parts from outside, one file each in tests/outside, without touching ddice: trained, saved,
loaded where their module is trusted, refused by name elsewhere, exported where an engine covers
them.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import small
import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from ddice.cli import main
from ddice.cli.plugins import UNIONS
from ddice.core import plugins
from ddice.core.config import Config
from ddice.core.randomness import Seed
from ddice.data import Batch, Spec
from ddice.data.spec import RewardSummary
from ddice.dice_backends import FDice, OptiDice, PiecewiseF
from ddice.dice_backends.divergences import KL, SoftChi2
from ddice.dice_backends.rewards import RewardTransform, Scale
from ddice.diffusion import solvers
from ddice.diffusion.guidance import Guidance
from ddice.diffusion.networks import (
    MLP,
    AnyScore,
    Encoder,
    EncoderConfig,
    FlattenEncoder,
    Network,
    ResidualScore,
    SmoothTime,
    StandardEncoder,
)
from ddice.diffusion.prior import DiffusionPrior, Prior, PriorConfig
from ddice.diffusion.samplers import Diffusion, Gaussian
from ddice.diffusion.schedule import NoiseSchedule, VariancePreserving
from ddice.diffusion.solvers import DDIM
from ddice.extractors import GaussianBC, GuideThenSelect, PolicyGradient
from ddice.policies.engines import NotCovered
from ddice.policies.engines.decision import add_network
from ddice.policies.engines.program import Program
from ddice.policies.export import export
from ddice.policies.policy import load_policy
from ddice.runs.recipe import Recipe
from ddice.runs.training import train
from ddice.testing import check_backend, check_divergence, check_extractor

pytestmark = pytest.mark.filterwarnings("ignore:.*rows dropped")
NET = MLP(hidden=(8,))


@dataclass(frozen=True)
class Case:
    """A file in tests/outside, what of a recipe it changes, whether the policy itself is made of
    it, and what no engine but the reference plays.
    """

    module: str
    changes: Callable[[Any], dict[str, Any]]
    in_policy: bool
    not_covered: str | None = None


CASES = {
    "solver": Case(
        "own_solver",
        lambda own: {"extractor": {"solver": own.Heun(evaluations=4)}},
        in_policy=True,
    ),
    "score": Case(
        "own_score",
        lambda own: {"prior": {"network": own.PlainScore(width=8)}},
        in_policy=True,
    ),
    "schedule": Case(
        "own_schedule",
        lambda own: {"prior": {"schedule": own.Cosine()}},
        in_policy=True,
    ),
    "divergence": Case(
        "own_divergence",
        lambda own: {
            "backend": FDice(value=NET, critic=NET, batch_size=16, divergence=own.Quadratic())
        },
        in_policy=False,
    ),
    "sampler": Case(
        "own_sampler",
        lambda own: {"extractor": own.Distilled(candidates=2)},
        in_policy=True,
        not_covered="not covered: the sampler own_sampler:OneStep",
    ),
    "backend": Case(
        "own_backend",
        lambda own: {"backend": own.Expectile(value=NET, advantage={"network": NET})},
        in_policy=False,
    ),
    "extractor": Case(
        "own_extractor",
        lambda own: {"extractor": own.BestHalf(candidates=2)},
        in_policy=False,
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The files are importable, and not imported."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "outside")
    yield
    forget()


def forget() -> None:
    for case in CASES.values():
        sys.modules.pop(case.module, None)


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    return small.write_npz(tmp_path / "data.npz")


def recipe_of(case: Case, npz: Path) -> Recipe:
    own = importlib.import_module(case.module)
    return small.recipe(npz, evaluation={"episodes": 0}, **case.changes(own))


def refusal(module: str) -> str:
    return (
        rf"{module}:\w+ is a class of the module '{module}', which is not trusted: nothing was "
        rf"imported.* trust=\['{module}'\], or --trust {module}"
    )


@every_case
def test_from_training_to_export(case: Case, npz: Path, tmp_path: Path) -> None:
    recipe = recipe_of(case, npz)
    trained, _ = train(recipe, progress=False, say=lambda text: None)
    folder = tmp_path / "policy"
    trained.policy.save(folder)
    again, _ = train(recipe, progress=False, say=lambda text: None)  # from the cache
    observations = torch.randn(5, 3)
    actions = trained.policy.act(observations, seed=0)
    assert torch.equal(again.policy.act(observations, seed=0), actions)
    forget()

    if case.in_policy:
        with pytest.raises(ValueError, match=refusal(case.module)):
            load_policy(folder, device="cpu")
        with pytest.raises(ValueError, match=refusal(case.module)):
            load_policy(
                folder, device="cpu", trust=["own", "somebody_else", f"{case.module}.inner"]
            )
        assert case.module not in sys.modules
    loaded = load_policy(folder, device="cpu", trust=[case.module] if case.in_policy else [])
    assert (case.module in sys.modules) == case.in_policy
    assert torch.equal(loaded.act(observations, seed=0), actions)

    if case.not_covered is not None:
        with pytest.raises(NotCovered, match=case.not_covered):
            export(loaded, tmp_path / "export")
        with pytest.warns(UserWarning, match=case.not_covered):
            assert loaded.compile().engine.name == "reference"
        return
    torch.testing.assert_close(
        loaded.compile("eager").act(observations, seed=0), actions, atol=1e-4, rtol=1e-4
    )
    pytest.importorskip("onnxruntime")
    assert export(loaded, tmp_path / "export").largest_error < 1e-3


@every_case
def test_a_recipe_from_json(case: Case, npz: Path) -> None:
    recipe = recipe_of(case, npz)
    content = json.loads(recipe.model_dump_json())
    assert content == recipe.model_dump(mode="json")
    assert f'"{case.module}:' in recipe.model_dump_json()
    assert recipe.digest() != small.recipe(npz, evaluation={"episodes": 0}).digest()
    assert Recipe.read(content, trust=[case.module]) == recipe
    assert Recipe.read(content, trust=[case.module]).digest() == recipe.digest()
    forget()
    for refused in (
        lambda: Recipe.model_validate(content),
        lambda: Recipe.model_validate_json(json.dumps(content)),
        lambda: Recipe.read(content, trust=["other"]),
    ):
        with pytest.raises(ValidationError, match=refusal(case.module)):
            refused()
    assert case.module not in sys.modules


@every_case
def test_on_the_command_line(
    case: Case, npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.json"
    config.write_text(recipe_of(case, npz).model_dump_json())
    forget()
    run = tmp_path / "run"
    command = ["train", "--no-progress", "--config", str(config), "--run", str(run)]
    assert main(command) == 1
    assert f"--trust {case.module}" in capsys.readouterr().err
    assert case.module not in sys.modules
    assert main([*command, "--trust", case.module]) == 0
    forget()
    evaluate = ["evaluate", str(run), "--no-progress", "--episodes", "1", "--device", "cpu"]
    assert main(evaluate) == (1 if case.in_policy else 0)
    assert case.module not in sys.modules
    assert main([*evaluate, "--trust", case.module]) == 0


# What the parts compute.


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("DDIM", 1e-2), ("SingleStep", 1e-3), ("MultiStep", 1e-3), ("Heun", 1e-3)],
)
def test_every_solver_integrates_the_cosine(name: str, tolerance: float) -> None:
    """Of N(0, std^2) the noise prediction is sigma x / v with v = alpha^2 std^2 + sigma^2, and
    the flow from t = 1 to t_min is x sqrt(v(t_min) / v(1)).
    """
    if name == "Heun":
        solver = importlib.import_module("own_solver").Heun(evaluations=400)
    else:
        solver = getattr(solvers, name)(evaluations=400, spacing="quadratic")
    schedule, std = importlib.import_module("own_schedule").Cosine(), 0.4

    def variance(t: Tensor) -> Tensor:
        return schedule.alpha(t) ** 2 * std**2 + schedule.sigma(t) ** 2

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        return schedule.sigma(t) * x / variance(t)

    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    action = solver.integrate(denoiser, x, schedule)
    last, first = variance(torch.tensor([schedule.t_min, 1.0], dtype=torch.float64))
    torch.testing.assert_close(action, x * (last / first).sqrt(), atol=0, rtol=tolerance)


@pytest.mark.oracle
def test_the_rest_of_a_schedule_follows_from_log_alpha_and_time() -> None:
    schedule = importlib.import_module("own_schedule").Cosine()
    t = torch.linspace(schedule.t_min, 1, 50, dtype=torch.float64)
    angle = 0.99 * torch.pi / 2 * t
    torch.testing.assert_close(schedule.alpha(t), angle.cos())
    torch.testing.assert_close(schedule.sigma(t), angle.sin())
    torch.testing.assert_close(schedule.log_snr(t), -angle.tan().log())
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t)


def test_they_conform() -> None:
    check_divergence(importlib.import_module("own_divergence").Quadratic())
    check_backend(importlib.import_module("own_backend").Expectile(value=NET, batch_size=16))
    check_extractor(importlib.import_module("own_extractor").BestHalf())


# What was silent before: a subclass of a configuration trained and was saved as its parent.


@pytest.mark.parametrize(
    ("final", "mend"),
    [
        (
            VariancePreserving,
            r"Derive from NoiseSchedule, class Mine\(NoiseSchedule\), with a",
        ),
        (FlattenEncoder, "Derive from EncoderConfig"),
        (DDIM, "Derive from Solver"),
        (KL, "Derive from FDivergence"),
        (SoftChi2, "Derive from FDivergence"),
        (Gaussian, "Derive from SamplerConfig"),
        (DiffusionPrior, "Derive from PriorConfig"),
        (GuideThenSelect, "Derive from DiffusionConfig"),
        (GaussianBC, "Derive from SelectingConfig"),
        (PolicyGradient, "Derive from ExtractorConfig"),
        (PiecewiseF, "Derive from PairConfig"),
        (OptiDice, "Derive from ValueOnlyConfig"),
        (Scale, "Derive from RewardTransform"),
        (ResidualScore, "Derive from Score"),
        (SmoothTime, "Derive from Time"),
        (MLP, r"class Mine\(Config\), that holds a MLP as a field"),
        (Guidance, r"class Mine\(Config\), that holds a Guidance as a field"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_final_configuration_has_no_subclass(final: type[Config], mend: str) -> None:
    with pytest.raises(TypeError, match=f"{final.__name__} is final, got class Mine.*{mend}"):
        type("Mine", (final,), {"__module__": __name__})


class Twin(NoiseSchedule):
    """The same kind and the same fields as the built-in, and twice its noise rate."""

    kind: Literal["vp"] = "vp"
    beta_min: float = Field(0.1, gt=0)
    beta_max: float = Field(20.0, gt=0)

    def log_alpha(self, t: Tensor) -> Tensor:
        return 2 * VariancePreserving().log_alpha(t)

    def time(self, log_snr: Tensor) -> Tensor:
        raise NotImplementedError


def test_a_twin_is_never_taken_for_the_built_in() -> None:
    prior = DiffusionPrior(schedule=Twin())
    assert Twin().model_dump() == VariancePreserving().model_dump()
    assert Twin().digest() != VariancePreserving().digest()
    assert prior.digest() != DiffusionPrior().digest()
    sampler = Diffusion(prior=prior)
    assert sampler.digest() != Diffusion(prior=DiffusionPrior()).digest()
    assert sampler.model_dump()["prior"]["schedule"]["kind"] == f"{__name__}:Twin"
    with pytest.raises(ValidationError, match=refusal(__name__)):
        Diffusion.model_validate(sampler.model_dump())
    again = Diffusion.read(sampler.model_dump(mode="json"), trust=[__name__])
    assert type(again.prior.schedule) is Twin
    assert again == sampler


# What cannot be read back is refused when it is put in.


class Tinted(RewardTransform):
    """A field that JSON does not give back."""

    kind: Literal["tinted"] = "tinted"
    shade: Any = None

    def apply(self, rewards: Tensor, summary: RewardSummary) -> Tensor:
        return rewards

    def summarise(self, summary: RewardSummary) -> RewardSummary:
        return summary


def test_what_does_not_come_back_is_not_taken() -> None:
    assert OptiDice(rewards=Tinted(shade=[1, "a"])).rewards == (Tinted(shade=[1, "a"]),)
    with pytest.raises(ValidationError, match=r"Tinted does not come back from its own JSON: exp"):
        OptiDice(rewards=(Tinted(shade=(1, 2)),))
    with pytest.raises(ValidationError, match=r"Tinted does not come back from its own JSON: .*"):
        OptiDice(rewards=(Tinted(shade=lambda x: x),))

    class Local(RewardTransform):
        kind: Literal["local"] = "local"

        def apply(self, rewards: Tensor, summary: RewardSummary) -> Tensor:
            return rewards

        def summarise(self, summary: RewardSummary) -> RewardSummary:
            return summary

    with pytest.raises(
        ValidationError,
        match=r"<locals>\.Local is not found again under that name.*: define the class at the top",
    ):
        OptiDice(rewards=(Local(),))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "test_doors:Tinted",
            r"must be a subclass of ddice\.diffusion\.schedule\.NoiseSchedule, got",
        ),
        ("test_doors:nothing", "cannot be imported: AttributeError"),
        ("no_such_module:A", "cannot be imported: ModuleNotFoundError"),
        ("ddice.diffusion.schedule:NoiseSchedule", "must be a final subclass of"),
        (":", "cannot be imported"),
    ],
)
def test_a_name_of_something_else(kind: str, message: str) -> None:
    module = kind.partition(":")[0]
    with pytest.raises(ValidationError, match=message):
        DiffusionPrior.read({"schedule": {"kind": kind}}, trust=[module])


def test_a_package_is_trusted_with_all_that_it_holds() -> None:
    assert plugins.trusted("mine", ["mine"])
    assert plugins.trusted("mine.parts.solvers", ["mine"])
    assert not plugins.trusted("mine", ["mine.parts"])
    assert not plugins.trusted("mine_too", ["mine"])
    assert not plugins.trusted("mine", [])


def test_every_union_has_a_door() -> None:
    """The fields of all configurations: none is closed to what derives from its abstract class."""
    assert [plugins.group(union) for union in UNIONS] == list(plugins.GROUPS)
    for union in UNIONS:
        base = plugins.abstract_class(union)
        built_in = plugins.members(union)
        assert base.is_abstract
        assert built_in
        kinds = [cls.model_fields["kind"].default for cls in built_in]
        assert len(set(kinds)) == len(kinds)
        with pytest.raises(ValidationError, match=r"unknown kind 'x': .*known are "):
            TypeAdapter(union).validate_python({"kind": "x"})
        with pytest.raises(ValidationError, match="which is not trusted: nothing was imported"):
            TypeAdapter(union).validate_python({"kind": "no_such_module:A"})


# An encoder and a prior, which are doors too.


class Doubled(EncoderConfig):
    kind: Literal["doubled"] = "doubled"

    def build(self, mean: Sequence[float], std: Sequence[float]) -> Encoder:
        return DoubledEncoder(torch.tensor(mean), torch.tensor(std))


class DoubledEncoder(Encoder):
    """Features and their squares."""

    def __init__(self, mean: Tensor, std: Tensor):
        super().__init__()
        self.standard = StandardEncoder(mean, std)
        self.size = 2 * self.standard.size

    def forward(self, observations: Tensor) -> Tensor:
        features = self.standard(observations)
        return torch.cat([features, features.square()], -1)


class Frozen(PriorConfig):
    """A prior whose network never learns."""

    kind: Literal["frozen"] = "frozen"
    network: AnyScore = ResidualScore(width=8, blocks=1)

    def modules(self, spec: Spec, seed: Seed = 0, stream: str = "prior") -> tuple[Encoder, Network]:
        encoder = self.encoder.build(spec.normalizer.mean, spec.normalizer.std)
        size = spec.actions.size
        return encoder, self.network.build(encoder.size, size, seed=seed, stream=stream)

    def build(self, spec: Spec, seed: Seed = 0, stream: str = "prior") -> Prior:
        return FrozenPrior(self, spec, seed, stream)


class FrozenPrior(Prior):
    def update(self, batch: Batch, *, step: int) -> dict[str, Tensor]:
        self.step = step + 1
        return {}


def test_an_encoder_and_a_prior(npz: Path, tmp_path: Path) -> None:
    recipe = small.recipe(
        npz,
        prior=Frozen(encoder=Doubled(), batch_size=16),
        backend={"encoder": Doubled()},
        evaluation={"episodes": 0},
    )
    trained, _ = train(recipe, tmp_path / "run", progress=False, say=lambda text: None)
    assert trained.prior is not None
    fresh = recipe.prior.build(trained.prior.spec, seed=0)
    for one, two in zip(
        fresh.network.parameters(), trained.prior.network.parameters(), strict=True
    ):
        assert torch.equal(one, two)
    folder = tmp_path / "run" / "policy"
    with pytest.raises(ValueError, match=refusal(__name__)):
        load_policy(folder, device="cpu")
    loaded = load_policy(folder, device="cpu", trust=[__name__])
    observations = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    actions = trained.policy.act(observations, deterministic=True)
    assert (loaded.act(observations, deterministic=True) == actions).all()
    with pytest.raises(NotCovered, match=f"not covered: the encoder {__name__}:DoubledEncoder"):
        loaded.compile("eager")


def test_a_network_that_is_more_than_its_plan_is_not_covered() -> None:
    class Halved(Network):
        def forward(self, *inputs: Tensor) -> Tensor:
            return super().forward(*inputs) / 2

    program = Program()
    with pytest.raises(NotCovered, match=r"not covered: the network .*Halved"):
        add_network(program, Halved({"x": 1}, seed=0, stream="halved"), {"x": "x"})
