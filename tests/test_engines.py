"""Every engine against the reference, on the same noise: all samplers, solvers, networks,
selection rules, K and numbers of states.
"""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from parity import candidate_error, choice_error
from torch import Tensor

from ddice.dice_backends import QConfig
from ddice.diffusion.guidance import Guidance
from ddice.diffusion.networks import MLP, FourierTime, Network, PublishedScore, ResidualScore, Score
from ddice.diffusion.prediction import NoisePrediction
from ddice.diffusion.prior import DiffusionPrior
from ddice.diffusion.samplers import Actor, AnySampler, Diffusion, Gaussian, Selection
from ddice.diffusion.schedule import VariancePreserving
from ddice.diffusion.solvers import DDIM, MultiStep, SingleStep, Solver
from ddice.policies.engines import NotCovered, products
from ddice.policies.engines.decision import decision_program, solver_matrix
from ddice.policies.policy import Policy, PolicyConfig
from ddice.testing.example import example_data

ENGINES = ("eager", "onnx")
SPEC = example_data().spec
SCORES: dict[str, Score] = {
    "residual": ResidualScore(width=16, blocks=2),
    "residual, fourier": ResidualScore(width=16, blocks=1, time=FourierTime(size=8, scale=2.0)),
    "published": PublishedScore(widths=(16, 12, 8), condition=8, embedding=4),
}
GUIDANCES = {
    "none": None,
    "silu": Guidance(network=MLP(hidden=(16, 12), activation="silu")),
    "relu, normalised": Guidance(network=MLP(hidden=(16, 12), activation="relu", layer_norm=True)),
    "affine": Guidance(network=MLP(hidden=())),
    "published": Guidance(
        network=MLP(hidden=(16,) * 4, activation="silu"), time=FourierTime(size=8, scale=2.0)
    ),
}
SELECTIONS = (
    Selection(rule="mean"),
    Selection(rule="minimum"),
    Selection(rule="softmax", temperature=0.1),
    Selection(rule="lcb", coefficient=0.7),
)
SOLVERS: list[Solver] = [
    kind(evaluations=evaluations, spacing=spacing)
    for kind, evaluations, spacing in itertools.product(
        (DDIM, SingleStep, MultiStep), (1, 2, 3, 8, 15), ("uniform", "quadratic", "log_snr")
    )
] + [MultiStep(evaluations=8, order=1)]


def shaken(policy: Policy) -> Policy:
    """The same policy with all of its parameters moved, so that biases and gains matter."""
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in (policy.sampler, policy.q):
            if module is not None:
                for parameter in module.parameters():
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=source))
    return policy


def make(
    sampler: AnySampler,
    *,
    candidates: int = 4,
    selection: Selection | None = None,
    after: bool = False,
    layer_norm: bool = False,
) -> Policy:
    q = QConfig(
        critic=MLP(hidden=(16, 16), layer_norm=layer_norm), members=3, value=MLP(hidden=(8,))
    )
    config = PolicyConfig(
        sampler=sampler,
        candidates=candidates,
        selection=selection or Selection(),
        clip_candidates="after_scoring" if after else "before_scoring",
        q=None if candidates == 1 else q,
    )
    return shaken(
        Policy(config, SPEC, sampler.build(SPEC), None if candidates == 1 else q.build(SPEC))
    )


def cases() -> Iterator[tuple[str, Policy]]:
    for (score, network), (guidance, config) in itertools.product(
        SCORES.items(), GUIDANCES.items()
    ):
        yield (
            f"{score} score, {guidance} guidance",
            make(
                Diffusion(
                    prior=DiffusionPrior(prediction=NoisePrediction(), network=network),
                    guidance=config,
                    guidance_scale=1.5,
                    clip_denoised=False,
                )
            ),
        )
    sampler = Diffusion(
        prior=DiffusionPrior(prediction=NoisePrediction(), network=SCORES["residual"]),
        guidance=GUIDANCES["silu"],
        clip_denoised=False,
    )
    for solver in SOLVERS:
        yield (
            f"{solver.kind} {solver.evaluations} {solver.spacing}",
            make(sampler.model_copy(update={"solver": solver})),
        )
    for solver in (
        DDIM(evaluations=3),
        SingleStep(evaluations=15),
        MultiStep(evaluations=8, spacing="quadratic"),
    ):
        for guidance in ("none", "silu"):
            clipping = sampler.model_copy(
                update={"solver": solver, "guidance": GUIDANCES[guidance], "clip_denoised": True}
            )
            yield f"{solver.kind} {solver.evaluations} clipped, {guidance} guidance", make(clipping)
    for clip, guidance in itertools.product((False, True), ("none", "silu")):
        yield (
            f"velocity, clip {clip}, {guidance} guidance",
            make(
                Diffusion(
                    prior=DiffusionPrior(network=SCORES["residual"]),
                    guidance=GUIDANCES[guidance],
                    clip_denoised=clip,
                )
            ),
        )
    yield "actor", make(Actor(network=MLP(hidden=(8,), layer_norm=True)), candidates=1)
    for selection, candidates, after in itertools.product(SELECTIONS, (1, 2, 7), (False, True)):
        rule = selection.rule
        yield (
            f"{rule} of {candidates}, after {after}",
            make(
                sampler, candidates=candidates, selection=selection, after=after, layer_norm=after
            ),
        )
        yield (
            f"gaussian, {rule} of {candidates}, after {after}",
            make(Gaussian(network=MLP(hidden=(8,))), candidates=candidates, selection=selection),
        )


def inputs(policy: Policy, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    noise = torch.randn(batch, policy.config.candidates, SPEC.actions.size, generator=source)
    return (
        torch.randn(batch, SPEC.observations.size, generator=source),
        noise,
        torch.rand(batch, generator=source),
    )


def agree(policy: Policy, engine: str, batch: int) -> None:
    """The candidates within 1e-5 of the largest, and the same choice except at ties."""
    observations, noise, uniform = inputs(policy, batch)
    expected = policy.decide(observations, noise, uniform)
    got = policy.compile(engine).decide(observations, noise, uniform)  # type: ignore[arg-type]
    assert candidate_error(expected, got) < 1e-5
    assert choice_error(policy, observations, uniform, expected.candidates, got.chosen) < 1e-5


@pytest.mark.parametrize("engine", ["eager", "packed", "onnx"])
@pytest.mark.parametrize(("name", "policy"), [pytest.param(*case, id=case[0]) for case in cases()])
def test_every_engine_makes_the_decisions_of_the_reference(
    engine: str, name: str, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "packed": the engine eager with every product by oneDNN, whatever the processor and the
    size.
    """
    if engine == "onnx":
        pytest.importorskip("onnxruntime")
    if engine == "packed" and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch comes without oneDNN")
    monkeypatch.setattr(products, "packing_pays", lambda: engine == "packed")
    monkeypatch.setattr(products, "WORTH_PACKING", 0)
    for batch in (1, 5):
        agree(policy, "eager" if engine == "packed" else engine, batch)


@pytest.mark.parametrize("engine", ["reference", *ENGINES])
def test_clipping_acts_at_every_evaluation(engine: str) -> None:
    """Clean actions within [-1, 1] end as such, up to sigma(t_min) of the noise; these untrained
    networks do not without it.
    """
    sampler = Diffusion(
        prior=DiffusionPrior(prediction=NoisePrediction(), network=SCORES["residual"]),
        guidance=GUIDANCES["silu"],
        guidance_scale=1.5,
        clip_denoised=False,
    )
    free, kept = (
        make(sampler.model_copy(update={"clip_denoised": clip})) for clip in (False, True)
    )
    observations, noise, _ = inputs(kept, 50)
    if engine == "onnx":
        pytest.importorskip("onnxruntime")
    assert free.compile(engine).decide(observations, noise).candidates.abs().max() > 2  # type: ignore[arg-type]
    assert kept.compile(engine).decide(observations, noise).candidates.abs().max() < 1.05  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("clean", [False, True])
def test_a_solver_is_its_matrix(solver: Solver, clean: bool) -> None:
    """Integrating a nonlinear denoiser step by step, and by the matrix: equal in float64."""
    schedule = VariancePreserving()
    times, matrix = solver_matrix(solver, schedule, clean=clean, clip=False)
    assert len(times) == solver.evaluations
    assert torch.equal(matrix, matrix.tril())

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(3 * x) + t * x

    start = torch.linspace(-2, 2, 9, dtype=torch.float64)
    history = [start]
    for row, t in zip(matrix[:-1], times, strict=True):
        x = row[: len(history)] @ torch.stack(history)
        history.append(
            (x - schedule.sigma(t) * denoise(x, t)) / schedule.alpha(t) if clean else denoise(x, t)
        )
    torch.testing.assert_close(
        matrix[-1] @ torch.stack(history),
        solver.integrate(denoise, start, schedule),
        rtol=1e-9,
        atol=1e-9,
    )


def test_a_scale_of_0_is_no_guidance() -> None:
    """In every engine to the bit, and without the price of the gradient."""
    sampler = Diffusion(
        prior=DiffusionPrior(prediction=NoisePrediction(), network=SCORES["residual"]),
        guidance=GUIDANCES["silu"],
        guidance_scale=0.0,
        clip_denoised=False,
    )
    scaled, free = make(sampler), make(sampler.model_copy(update={"guidance": None}))
    given = inputs(scaled, 5)
    for name in ("reference", *ENGINES):
        if name == "onnx":
            pytest.importorskip("onnxruntime")
        found, expected = (policy.compile(name).decide(*given) for policy in (scaled, free))  # type: ignore[arg-type]
        assert torch.equal(found.candidates, expected.candidates)
    of_scaled, of_free = (
        decision_program(policy.procedure).generator.network for policy in (scaled, free)
    )
    assert len(of_scaled.body) == len(of_free.body)


@pytest.mark.parametrize("what", ["prediction", "q"])
def test_an_output_without_candidates_is_not_covered(what: str) -> None:
    """A network that does not read the actions: the reference plays it, and every other engine
    says that it cannot.
    """

    def blind(inputs: dict[str, int], outputs: int, members: tuple[int, ...] = ()) -> Network:
        network = Network(inputs, seed=0, stream="blind", members=members)
        network.linear("features", outputs)
        return network

    policy = make(
        Diffusion(
            prior=DiffusionPrior(prediction=NoisePrediction(), network=SCORES["residual"]),
            clip_denoised=False,
        )
    )
    size = SPEC.observations.size
    if what == "q":
        policy.q.critic = blind({"features": size, "actions": 2}, 1, members=(3,))
    else:
        policy.sampler.network = blind({"features": size, "actions": 2, "time": 4}, 2)
    assert policy.decide(*inputs(policy, 5)).actions.shape == (5, 2)
    with pytest.raises(
        NotCovered, match="not covered: an output that does not depend on the candidates"
    ):
        policy.compile("eager")
    with pytest.warns(UserWarning, match="'auto' is the reference here"):
        assert policy.compile().engine.name == "reference"


@pytest.mark.parametrize("engine", ["reference", *ENGINES])
def test_a_q_may_learn_from_decisions(engine: str) -> None:
    """They are ordinary tensors, in one chunk and in several."""
    if engine == "onnx":
        pytest.importorskip("onnxruntime")
    policy = make(
        Diffusion(
            prior=DiffusionPrior(prediction=NoisePrediction(), network=SCORES["residual"]),
            clip_denoised=False,
        )
    )
    for rows in (8, 1000):
        actions = policy.compile(engine, rows_per_call=rows).decide(*inputs(policy, 5)).actions  # type: ignore[arg-type]
        weight = torch.ones(2, requires_grad=True)
        (actions @ weight).sum().backward()
        torch.testing.assert_close(weight.grad, actions.sum(0))


@pytest.mark.parametrize("engine", ["reference", *ENGINES])
def test_inputs_of_different_numbers_of_states(engine: str) -> None:
    if engine == "onnx":
        pytest.importorskip("onnxruntime")
    policy = make(
        Diffusion(
            prior=DiffusionPrior(prediction=NoisePrediction(), network=SCORES["residual"]),
            clip_denoised=False,
        )
    ).compile(engine, rows_per_call=8)  # type: ignore[arg-type]
    observations, noise, uniform = inputs(policy, 7)
    with pytest.raises(ValueError, match="expected noise for 7 states, got them for 4"):
        policy.decide(observations, noise[:4])
    with pytest.raises(ValueError, match="expected uniform numbers for 7 states, got them for 1"):
        policy.decide(observations, noise, uniform[:1])


class Own(Solver):
    """DDIM of which a test changes something."""

    kind: Literal["own"] = "own"
    clips_action: bool = False
    ignores_clip: bool = False
    wasted: int = 0

    def integrate(self, denoiser, x, schedule, clip=False):  # type: ignore[no-untyped-def]
        for _ in range(self.wasted):
            denoiser(x, torch.ones((), dtype=x.dtype))
        steps = self.evaluations + min(self.wasted, 0)
        clips = clip and not self.ignores_clip
        action = DDIM(evaluations=steps).integrate(denoiser, x, schedule, clips)
        return action.clamp(-1, 1) if self.clips_action else action


@pytest.mark.parametrize(
    ("changes", "clean", "reason"),
    [
        ({"clips_action": True}, False, "whose steps are not linear in noise and predictions"),
        ({"ignores_clip": True}, True, "whose steps are not linear in noise and predictions"),
        ({"wasted": 1}, False, "which evaluates more often than `evaluations` says"),
        ({"wasted": -1}, False, "which evaluates less often than `evaluations` says"),
    ],
    ids=["not linear", "clip ignored", "too many", "too few"],
)
def test_what_a_solver_of_ones_own_must_be(changes: Any, clean: bool, reason: str) -> None:
    solver_matrix(Own(evaluations=4), VariancePreserving(), clean=clean, clip=clean)
    with pytest.raises(NotCovered, match=f"not covered: the solver test_engines:Own, {reason}"):
        solver_matrix(Own(evaluations=4, **changes), VariancePreserving(), clean=clean, clip=clean)


@pytest.mark.parametrize("after", [False, True])
def test_the_baseline_of_the_benchmarks_makes_the_same_decisions(
    after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What speed is measured against is the same sampler, written plainly."""
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent.parent), *sys.path])
    plain_eager = pytest.importorskip("benchmarks.plain_eager")
    for score, guidance in (("residual", "silu"), ("published", "published")):
        sampler = Diffusion(
            prior=DiffusionPrior(prediction=NoisePrediction(), network=SCORES[score]),
            guidance=GUIDANCES[guidance],
            guidance_scale=1.5,
            clip_denoised=False,
        )
        policy = make(sampler, after=after)
        observations, noise, _ = inputs(policy, 7)
        plain, expected = plain_eager.PlainEager(policy), policy.decide(observations, noise)
        features = policy.sampler.encoder(observations).repeat_interleave(noise.shape[1], 0)
        candidates = plain.sample(features, noise.reshape(-1, noise.shape[-1])).view(noise.shape)
        torch.testing.assert_close(candidates, expected.candidates, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(plain(observations, noise), expected.actions, rtol=0, atol=1e-4)


def test_auto_is_the_fastest_engine_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    policy = make(
        Diffusion(
            prior=DiffusionPrior(prediction=NoisePrediction(), network=SCORES["residual"]),
            clip_denoised=False,
        )
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert policy.compile().engine.name == "onnx"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.warns(
        UserWarning, match=r"'auto' goes without 'onnx'.*pip install 'ddice\[onnx\]'"
    ) as caught:
        assert policy.compile().engine.name == "eager"
    assert caught[0].filename == __file__
    with pytest.raises(ImportError, match="pip install"):
        policy.compile("onnx")


def test_numbers_of_states_that_cannot_be() -> None:
    policy = make(
        Diffusion(
            prior=DiffusionPrior(prediction=NoisePrediction(), network=SCORES["residual"]),
            clip_denoised=False,
        )
    )
    for sizes in ((), (4, 0), (-3,)):
        with pytest.raises(ValueError, match="batch_sizes"):
            policy.compile("eager", batch_sizes=sizes)


def test_auto_is_the_reference_for_what_cannot_be_taken_apart() -> None:
    sampler = Diffusion(
        prior=DiffusionPrior(prediction=NoisePrediction(), network=SCORES["residual"]),
        clip_denoised=False,
    )
    policy = Policy(
        PolicyConfig(sampler=sampler, candidates=2, q="given"),
        SPEC,
        sampler.build(SPEC),
        lambda observations, actions: actions[:, 0],
    )
    with pytest.warns(
        UserWarning,
        match="'auto' is the reference here: not covered: a Q that is a callable of your own",
    ):
        assert policy.compile().engine.name == "reference"
    with pytest.raises(NotCovered, match="a callable of your own"):
        policy.compile("eager")
    assert (
        policy.with_settings(candidates=1).compile("eager").engine.name == "eager"
    )  # which asks no Q
