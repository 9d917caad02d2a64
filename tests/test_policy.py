from __future__ import annotations

import copy
import json
import math
import multiprocessing
import os
import pickle
import shutil
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ddice
from ddice.core.storage import load_tensors, save_tensors
from ddice.data import Spec
from ddice.dice_backends import QConfig
from ddice.diffusion.guidance import Guidance
from ddice.diffusion.networks import MLP, ResidualScore
from ddice.diffusion.prior import DiffusionPrior
from ddice.diffusion.samplers import Diffusion, DiffusionSampler, Gaussian, Sampler, Selection
from ddice.diffusion.solvers import FEW_STEPS
from ddice.policies.export import export
from ddice.policies.policy import Policy, load_policy, make_policy

LOW, HIGH = (-2.0, 0.0), (4.0, 0.5)


def spec_of(nested: bool = False) -> Spec:
    rng = np.random.default_rng(0)
    position, goal = rng.normal(size=(20, 2)), rng.normal(size=(20, 1))
    observations = (
        {"position": position, "goal": {"x": goal}}
        if nested
        else np.concatenate([goal, position], 1)
    )
    arrays = {
        "observations": observations,
        "actions": rng.uniform(LOW, HIGH, (20, 2)),
        "rewards": np.zeros(20),
        "terminations": np.arange(20) % 5 == 4,
        "truncations": np.zeros(20, bool),
    }
    return ddice.load_dataset(arrays, action_bounds=(LOW, HIGH)).spec


SPEC = spec_of()


class Affine(Sampler):
    """A sampler whose candidates are known: 10 times the noise plus the first observation."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Gaussian()
        self.unit = nn.Parameter(torch.ones(()))

    def forward(self, observations: Tensor, noise: Tensor) -> Tensor:
        return self.unit * (observations[:, :1, None] + 10 * noise)

    def latents(self, candidates: int, actions: int) -> Tensor:
        return torch.linspace(-0.05, 0.05, candidates)[:, None].expand(candidates, actions)


class Spy:
    """A Q that prefers large first actions and records what it is asked."""

    def __init__(self) -> None:
        self.observations, self.actions = torch.empty(0), torch.empty(0)

    def __call__(self, observations: Tensor, actions: Tensor) -> Tensor:
        self.observations, self.actions = observations.clone(), actions.clone()
        return actions[:, 0][None]


def affine(candidates: int = 1, q=None, **settings) -> Policy:
    return make_policy(
        SPEC,
        Affine(),
        candidates=candidates,
        selection=settings.pop("selection", Selection()),
        q=q,
        **settings,
    )


def whole(
    candidates: int = 3, rule: str = "mean", spec: Spec = SPEC, kind: str = "gaussian"
) -> Policy:
    """A whole, untrained policy with its own Q, of two members and a value. (An untrained
    diffusion model ends at the bounds.)
    """
    small = MLP(hidden=(8,))
    q = QConfig(critic=small, members=2, value=small).build(spec, seed=1)
    config = (
        Gaussian(network=small)
        if kind == "gaussian"
        else Diffusion(
            prior=DiffusionPrior(network=ResidualScore(width=8, blocks=1)), clip_denoised=False
        )
    )
    sampler = config.build(spec)
    return make_policy(
        spec,
        sampler,
        candidates=candidates,
        selection=Selection(rule=rule),
        q=q,
        notes={"from": "a test"},
    )


OBSERVATIONS = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)


def test_candidates_are_mapped_into_the_bounds_before_they_are_scored() -> None:
    spy = Spy()
    policy = affine(candidates=8, q=spy)
    policy.act(OBSERVATIONS, seed=0)
    assert spy.actions.shape == (48, 2)
    assert spy.actions.abs().max() == 1
    assert torch.equal(spy.observations, torch.from_numpy(OBSERVATIONS).repeat_interleave(8, 0))


def test_the_published_order_scores_first() -> None:
    spy = Spy()
    policy = affine(candidates=8, q=spy, clip_candidates="after_scoring")
    actions = policy.act(OBSERVATIONS, seed=0)
    assert spy.actions.abs().max() > 5
    assert (actions >= np.array(LOW) - 1e-6).all()
    assert (actions <= np.array(HIGH) + 1e-6).all()


def test_the_clip_rate_is_counted() -> None:
    """Latents -0.05 ... 0.05 times 10 plus the observation 0.8: 0.3, 0.55, 0.8, 1.05, 1.3, so
    two of five leave the bounds.
    """
    policy = affine(candidates=5, q=Spy())
    assert policy.clip_rate == 0
    policy.act(np.array([[0.8, 0, 0]]), deterministic=True)
    assert policy.clip_rate == pytest.approx(2 / 5)
    policy.act(np.array([[0.0, 0, 0]]), deterministic=True)
    assert policy.clip_rate == pytest.approx(2 / 10)


def test_the_clip_rate_counts_the_calls_of_all_threads() -> None:
    policy = affine()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(
                pool.map(
                    lambda _: policy.decide(torch.zeros(1, 3), torch.ones(1, 1, 2)), range(1000)
                )
            )
    finally:
        sys.setswitchinterval(before)
    assert policy.clip_rate == 1
    assert policy._seen == 1000


def test_the_best_candidate_is_played_in_the_units_of_the_environment() -> None:
    """Unit actions 0.3 and 0.5: low + (a + 1) / 2 (high - low)."""
    policy = affine(candidates=2, q=Spy())
    actions = policy.act(np.array([[0.0, 0, 0], [-0.2, 0, 0]]), deterministic=True)
    np.testing.assert_allclose(
        actions, [[-2 + 0.75 * 6, 0.75 * 0.5], [-2 + 0.65 * 6, 0.65 * 0.5]], rtol=1e-6
    )
    worst = affine(
        candidates=2, q=lambda observations, actions: -actions[:, 0]
    )  # one member may be (B,)
    np.testing.assert_allclose(
        worst.act(np.zeros(3), deterministic=True), [-2 + 0.25 * 6, 0.25 * 0.5], rtol=1e-6
    )


@pytest.mark.parametrize("rule", ["mean", "minimum", "softmax"])
def test_deterministic_actions_do_not_depend_on_the_batch(rule: str) -> None:
    policy = whole(rule=rule)
    together = policy.act(OBSERVATIONS, deterministic=True)
    assert np.array_equal(together, policy.act(OBSERVATIONS, deterministic=True))
    for row, observation in zip(together, OBSERVATIONS, strict=True):
        np.testing.assert_allclose(
            policy.act(observation, deterministic=True), row, rtol=1e-4, atol=1e-5
        )
    assert len(np.unique(together, axis=0)) == 6


@pytest.mark.parametrize("rule", ["mean", "softmax"])
def test_a_seed_per_row(rule: str) -> None:
    """Row i depends on seed[i] alone; the same number in another row of another batch is the
    same action.
    """
    policy = whole(rule=rule)
    together = policy.act(OBSERVATIONS, seed=[5, 6, 7, 8, 9, 5])
    np.testing.assert_allclose(
        policy.act(OBSERVATIONS[2:4], seed=[7, 8]), together[2:4], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        policy.act(OBSERVATIONS[[2, 0]], seed=[0, 5])[1], together[0], rtol=1e-4, atol=1e-5
    )
    same = policy.act(np.repeat(OBSERVATIONS[:1], 2, 0), seed=[5, 6])
    assert not np.allclose(same[0], same[1])
    with pytest.raises(ValueError, match="one for each of the 6 observations, got 2"):
        policy.act(OBSERVATIONS, seed=[1, 2])


def test_seeds_of_every_integer_type() -> None:
    policy = whole()
    expected = policy.act(OBSERVATIONS, seed=3)
    assert np.array_equal(policy.act(OBSERVATIONS, seed=np.int64(3)), expected)
    assert np.array_equal(
        policy.act(OBSERVATIONS, seed=np.arange(6)), policy.act(OBSERVATIONS, seed=list(range(6)))
    )
    assert not np.array_equal(policy.act(OBSERVATIONS, seed=4), expected)
    assert not np.array_equal(policy.act(OBSERVATIONS), policy.act(OBSERVATIONS))


def test_acting_leaves_the_global_generators_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for seed in (None, 1, [1] * 6):
        whole().act(OBSERVATIONS, seed=seed)
    whole().act(OBSERVATIONS, deterministic=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_shapes_and_types() -> None:
    policy = whole()
    one, many = policy.act(OBSERVATIONS[0]), policy.act(OBSERVATIONS)
    assert isinstance(one, np.ndarray)
    assert (one.shape, many.shape) == ((2,), (6, 2))
    assert one.dtype == many.dtype == np.float32
    tensor = policy.act(torch.from_numpy(OBSERVATIONS), deterministic=True)
    assert isinstance(tensor, Tensor)
    np.testing.assert_array_equal(tensor, policy.act(OBSERVATIONS, deterministic=True))
    np.testing.assert_array_equal(
        policy.act(OBSERVATIONS.astype(np.float64), deterministic=True),
        policy.act(OBSERVATIONS, deterministic=True),
    )
    np.testing.assert_array_equal(
        policy.act(OBSERVATIONS.tolist(), deterministic=True),
        policy.act(OBSERVATIONS, deterministic=True),
    )


def test_predict_is_the_habit_of_stable_baselines() -> None:
    policy = whole()
    action, state = policy.predict(OBSERVATIONS, deterministic=True)
    assert state is None
    assert np.array_equal(action, policy.act(OBSERVATIONS, deterministic=True))


def test_observations_of_nested_dicts() -> None:
    spec = spec_of(nested=True)
    policy = whole(spec=spec)
    assert [part.path for part in spec.observations.parts] == ["goal/x", "position"]
    native = {
        "position": OBSERVATIONS[:, 1:],
        "goal": {"x": OBSERVATIONS[:, :1]},
        "unused": np.zeros((6, 9)),
    }
    expected = whole().act(OBSERVATIONS, deterministic=True)
    np.testing.assert_allclose(policy.act(native, deterministic=True), expected, rtol=1e-5)
    single = {"position": OBSERVATIONS[0, 1:], "goal": {"x": OBSERVATIONS[0, :1]}}
    np.testing.assert_allclose(
        policy.act(single, deterministic=True), expected[0], rtol=1e-4, atol=1e-5
    )
    tensors = {
        "position": torch.from_numpy(OBSERVATIONS[:, 1:]),
        "goal": {"x": torch.from_numpy(OBSERVATIONS[:, :1])},
    }
    assert isinstance(policy.act(tensors), Tensor)
    with pytest.raises(ValueError, match="'position'"):
        policy.act({"goal": {"x": OBSERVATIONS[0, :1]}})


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (np.zeros(4), r"shape \(\.\.\., 3\), got \(4,\)"),
        (np.zeros((5, 2)), r"shape \(\.\.\., 3\), got \(5, 2\)"),
        (np.zeros((2, 2, 3)), "2 batch axes"),
        (np.zeros((0, 3)), "empty batch"),
        (np.array([0, np.nan, 0]), r"NaN or infinity at \[1\]"),
        (np.array([[0, 0, 0], [0, 0, -np.inf]]), r"NaN or infinity at \[1, 2\]"),
        (np.array([0, 1e300, 0]), "NaN or infinity"),
        (np.array([[0, 0, 0], [0, -1e20, 0]]), r"at \[1, 1\] of shape \(2, 3\) lies further"),
    ],
)
def test_observations_that_cannot_be(observation, message: str) -> None:
    with np.errstate(over="ignore"), pytest.raises(ValueError, match=message):
        whole().act(observation)


@pytest.mark.parametrize("engine", ["reference", "eager", "onnx"])
def test_nan_is_no_action(engine) -> None:
    if engine == "onnx":
        pytest.importorskip("onnxruntime")
    policy = whole(kind="diffusion")
    policy.sampler.encoder.mean[0], policy.sampler.encoder.std[0] = 0, 1e-38
    huge = np.float32([[0, 0, 0], [1e10, 0, 0]])
    with pytest.raises(
        ValueError, match="no action for row 1 but NaN: the observation lies far outside its data"
    ):
        policy.compile(engine).act(huge)
    assert np.isfinite(policy.compile(engine).act(huge[:1])).all()


@pytest.mark.parametrize("engine", ["reference", "eager", "onnx"])
@pytest.mark.parametrize("kind", ["gaussian", "diffusion"])
def test_every_engine_refuses_what_lies_too_far_from_the_data(engine: str, kind: str) -> None:
    """Of deviations 1, 1e15 times the deviation is the furthest; from 1e20 on some gave NaN and
    others a bound.
    """
    if engine == "onnx":
        pytest.importorskip("onnxruntime")
    policy = whole(kind=kind).compile(engine)
    furthest = np.float32(SPEC.limits)
    assert np.isfinite(policy.act(furthest, deterministic=True)).all()
    for size in (2e15, 1e20, 1e30, 3e38):
        for sign in (-1, 1):
            with pytest.raises(ValueError, match=r"at \[2\] of shape \(3,\) lies further"):
                policy.act(np.float32([0, 0, sign * size]))


@pytest.mark.parametrize("part", ["sampler", "q"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_make_no_policy(
    part: str, value: float, tmp_path: Path
) -> None:
    policy = whole()
    weights = next(iter(getattr(policy, part).parameters()))
    with torch.no_grad():
        weights.view(-1)[0] = value
    policy.save(tmp_path)
    for use in (policy.compile, lambda: load_policy(tmp_path), lambda: export(policy, tmp_path)):
        with pytest.raises(ValueError, match=rf"the weights {part}\.\S+ hold NaN or infinity"):
            use()


def test_a_critic_of_the_user_that_gives_nan_chooses_nothing() -> None:
    policy = affine(candidates=4, q=lambda _, actions: torch.full_like(actions[:, 0], math.nan))
    with pytest.raises(ValueError, match="gave NaN for 24 of 24 candidates"):
        policy.act(OBSERVATIONS)


def test_several_candidates_need_a_q() -> None:
    with pytest.raises(ValueError, match="candidates = 3 needs a Q"):
        affine(candidates=3)
    spy = Spy()
    affine(candidates=1, q=spy).act(OBSERVATIONS, seed=0)
    assert not len(spy.actions)  # nothing to choose


@pytest.mark.parametrize("kind", ["gaussian", "diffusion"])
@pytest.mark.parametrize("saved", [False, True], ids=["at once", "saved between"])
def test_candidates_go_up_and_down(kind: str, saved: bool, tmp_path: Path) -> None:
    """A policy trained with K = 1 and raised to 4 is the one that was trained with 4."""

    def kept(policy: Policy, name: str) -> Policy:
        if not saved:
            return policy
        policy.save(tmp_path / name)
        return load_policy(tmp_path / name, device="cpu")

    one, four = whole(candidates=1, kind=kind), whole(candidates=4, kind=kind)
    raised = kept(one, "one").with_settings(candidates=4)
    lowered = kept(raised, "raised").with_settings(candidates=1)
    for got, expected in ((raised, four), (lowered, one)):
        assert got.config == expected.config
        np.testing.assert_array_equal(
            got.act(OBSERVATIONS, seed=0), expected.act(OBSERVATIONS, seed=0)
        )


def test_candidates_of_a_callable_go_up_too() -> None:
    raised = affine(candidates=1, q=Spy()).with_settings(candidates=2)
    expected = affine(candidates=2, q=Spy()).act(OBSERVATIONS, seed=0)
    np.testing.assert_array_equal(raised.act(OBSERVATIONS, seed=0), expected)


@pytest.mark.parametrize("kind", ["gaussian", "diffusion"])
@pytest.mark.parametrize("engine", ["reference", "eager", "onnx"])
def test_a_pickled_policy_is_the_policy(kind: str, engine, tmp_path: Path) -> None:
    policy = whole(kind=kind).compile(engine)
    again = pickle.loads(pickle.dumps(policy))
    assert again.engine.name == engine
    assert (again.config, again.spec) == (policy.config, policy.spec)
    for arguments in ({"seed": 3}, {"deterministic": True}, {"seed": list(range(6))}):
        np.testing.assert_array_equal(
            again.act(OBSERVATIONS, **arguments), policy.act(OBSERVATIONS, **arguments)
        )


def best(observations: Tensor, actions: Tensor) -> Tensor:
    return actions[:, 0][None]


def test_a_pickled_policy_takes_a_callable_along() -> None:
    sampler = Gaussian(network=MLP(hidden=(4,))).build(SPEC)
    policy = make_policy(SPEC, sampler, candidates=4, selection=Selection(), q=best)
    again = pickle.loads(pickle.dumps(policy))
    assert again.q is best
    np.testing.assert_array_equal(again.act(OBSERVATIONS, seed=0), policy.act(OBSERVATIONS, seed=0))


def test_another_process_acts_the_same() -> None:
    policy = whole()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        got = pool.submit(policy.act, OBSERVATIONS, seed=0).result()
    np.testing.assert_array_equal(got, policy.act(OBSERVATIONS, seed=0))


def test_a_copy_owns_its_networks() -> None:
    """Also of a compiled policy, whose engine cannot be copied."""
    policy = whole().compile("eager")
    again, observations = copy.deepcopy(policy), np.ones((2, 3))
    expected = again.act(observations, seed=0)
    assert again.engine.name == "eager"
    np.testing.assert_array_equal(expected, policy.act(observations, seed=0))
    with torch.no_grad():
        for parameter in policy.sampler.parameters():
            parameter.add_(1.0)
    np.testing.assert_array_equal(again.act(observations, seed=0), expected)


def test_settings_of_acting_need_no_training() -> None:
    """The same networks with another solver, scale and K are a policy that was built with these."""
    guidance = Guidance(network=MLP(hidden=(8,), activation="silu"))
    sampler = Diffusion(
        prior=DiffusionPrior(network=ResidualScore(width=8, blocks=1)),
        guidance=guidance,
        clip_denoised=False,
    )
    built, q = (
        sampler.build(SPEC),
        QConfig(critic=MLP(hidden=(8,)), value=MLP(hidden=(8,))).build(SPEC),
    )
    policy = make_policy(SPEC, built, candidates=5, selection=Selection(), q=q).compile("eager")
    changed = policy.with_settings(
        solver=FEW_STEPS, guidance_scale=2.5, candidates=3, selection=Selection(rule="minimum")
    )
    other = DiffusionSampler(
        sampler.model_copy(update={"solver": FEW_STEPS, "guidance_scale": 2.5}),
        built.encoder,
        built.network,
        built.guidance,
    )
    expected = make_policy(
        SPEC, other, candidates=3, selection=Selection(rule="minimum"), q=q
    ).compile("eager")
    assert (changed.config, changed.engine.name) == (expected.config, "eager")
    observations = np.random.default_rng(0).normal(size=(6, 3))
    np.testing.assert_array_equal(
        changed.act(observations, seed=0), expected.act(observations, seed=0)
    )
    assert not np.array_equal(
        changed.act(observations, deterministic=True), policy.act(observations, deterministic=True)
    )
    np.testing.assert_array_equal(
        policy.with_settings().act(observations, seed=0), policy.act(observations, seed=0)
    )


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0, 2.0])
def test_the_noise_scale_multiplies_the_noise_of_every_candidate(scale: float) -> None:
    """Candidates are the first observation plus 10 times the noise, here (LOW + HIGH) / 2 = 1 and
    half a range of 3 from it in the first action dimension.
    """
    observations = 0.1 * np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    plain, scaled = affine(), affine(noise_scale=scale)
    middle = observations[:, 0]
    noise = plain.choose(observations, seed=0).candidates[:, 0, 0].numpy() - middle
    got = scaled.choose(observations, seed=0).candidates[:, 0, 0].numpy() - middle
    np.testing.assert_allclose(got, scale * noise, atol=1e-5)
    settings = plain.with_settings(noise_scale=scale)
    assert settings.config == scaled.config
    np.testing.assert_array_equal(
        settings.act(observations, seed=0), scaled.act(observations, seed=0)
    )


def test_a_gaussian_policy_without_noise_plays_its_mean() -> None:
    policy = whole(candidates=1).with_settings(noise_scale=0.0)
    observations = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    mean, _ = policy.sampler.mean_and_log_std(torch.as_tensor(observations))
    for choice in (policy.choose(observations), policy.choose(observations, deterministic=True)):
        torch.testing.assert_close(choice.candidates[:, 0], mean)


def test_settings_that_a_policy_has_no_use_for() -> None:
    gaussian, unguided = whole(), whole(kind="diffusion")
    for policy, changes, message in (
        (gaussian, {"solver": FEW_STEPS}, "this policy has no solver to change"),
        (unguided, {"guidance_scale": 2.0}, "this policy has no guidance_scale to change"),
        (affine(), {"candidates": 2}, "needs a Q to choose among them and there is none"),
        (unguided, {"candidates": 0}, "greater than or equal to 1"),
        (unguided, {"noise_scale": -0.1}, "greater than or equal to 0"),
        (unguided, {"noise_scale": 0.0}, "all 3 candidates are the same action"),
    ):
        with pytest.raises(ValueError, match=message):
            policy.with_settings(**changes)


@pytest.mark.parametrize("kind", [ValueError, torch.OutOfMemoryError])
def test_a_policy_stays_where_its_engine_runs(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, moved = whole(), []
    monkeypatch.setattr(policy, "_move", lambda device: moved.append(device.type))

    def refuse(settings: object, parts: object) -> None:
        raise kind("this engine needs another device")

    monkeypatch.setattr(ddice.policies.policy, "make_engine", refuse)
    with pytest.raises(kind, match="another device"):
        policy.to("meta")
    assert moved == ["meta", "cpu"]


def test_a_policy_owns_its_networks() -> None:
    sampler, q = (
        Gaussian(network=MLP(hidden=(4,))).build(SPEC),
        QConfig(critic=MLP(hidden=(4,))).build(SPEC),
    )
    policy = make_policy(SPEC, sampler, candidates=4, selection=Selection(), q=q)
    before = policy.act(OBSERVATIONS, deterministic=True)
    with torch.no_grad():
        for parameter in (*sampler.parameters(), *q.parameters()):
            parameter.add_(1)
    assert np.array_equal(policy.act(OBSERVATIONS, deterministic=True), before)
    assert all(parameter.requires_grad for parameter in sampler.parameters())


@pytest.mark.parametrize("kind", ["gaussian", "diffusion"])
@pytest.mark.parametrize("candidates", [1, 3])
def test_saved_and_loaded_bit_for_bit(candidates: int, kind: str, tmp_path: Path) -> None:
    policy = whole(candidates, kind=kind)
    policy.save(tmp_path / "policy")
    assert {path.name for path in (tmp_path / "policy").iterdir()} == {
        "policy.json",
        "policy.safetensors",
    }
    loaded = load_policy(tmp_path / "policy", device="cpu")
    assert loaded.config == policy.config
    assert loaded.spec == policy.spec
    assert loaded.config.notes == {"from": "a test"}
    for arguments in ({"seed": 3}, {"deterministic": True}, {"seed": list(range(6))}):
        assert np.array_equal(
            loaded.act(OBSERVATIONS, **arguments), policy.act(OBSERVATIONS, **arguments)
        )


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole().save(tmp_path)

    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    load_policy(tmp_path, device="cpu")


def test_a_callable_of_the_user_is_asked_for_again(tmp_path: Path) -> None:
    sampler = Gaussian(network=MLP(hidden=(4,))).build(SPEC)
    policy = make_policy(SPEC, sampler, candidates=4, selection=Selection(), q=Spy())
    policy.save(tmp_path)
    with pytest.raises(ValueError, match=r"load_policy\(path, q=\.\.\.\)"):
        load_policy(tmp_path, device="cpu")
    loaded = load_policy(tmp_path, device="cpu", q=Spy())
    assert np.array_equal(loaded.act(OBSERVATIONS, seed=0), policy.act(OBSERVATIONS, seed=0))
    policy.with_settings(candidates=1).save(tmp_path / "single")
    assert load_policy(tmp_path / "single", device="cpu").q is None  # one candidate needs none


def test_a_policy_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no policy"):
        load_policy(tmp_path)


def edited(content: str, **changes) -> str:
    return json.dumps({**json.loads(content), **changes})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text[: len(text) // 2], "truncated or foreign"),
        (lambda text: "", "truncated or foreign"),
        (lambda text: "[]", "policy"),
        (lambda text: "{}", "expected .* to hold a policy"),
        (
            lambda text: edited(text, kind="checkpoint"),
            "expected .* to hold a policy, got a checkpoint",
        ),
        (lambda text: edited(text, schema=99), "schema 99"),
        (lambda text: json.dumps({"kind": "policy", "schema": 1}), "policy"),
        (
            lambda text: edited(text, policy={**json.loads(text)["policy"], "candidate": 3}),
            "did you mean 'candidates'",
        ),
    ],
    ids=["truncated", "empty", "list", "foreign", "kind", "schema", "no content", "misspelt"],
)
def test_a_broken_description(edit, message: str, tmp_path: Path) -> None:
    """Of a policy that an earlier version saved: its tensors do not carry it."""
    whole().save(tmp_path)
    tensors, _ = load_tensors(tmp_path / "policy.safetensors", "policy")
    save_tensors(tmp_path / "policy.safetensors", "policy", tensors, {})
    expected = whole().act(OBSERVATIONS, seed=0)
    assert np.array_equal(load_policy(tmp_path, device="cpu").act(OBSERVATIONS, seed=0), expected)
    path = tmp_path / "policy.json"
    path.write_text(edit(path.read_text()))
    with pytest.raises(ValueError, match=message):
        load_policy(tmp_path)


def test_a_changed_text_changes_nothing_and_is_said(tmp_path: Path) -> None:
    """Mutations of policy.json, and its loss: always the policy that was saved."""
    policy = whole()
    policy.save(tmp_path)
    path = tmp_path / "policy.json"
    intact = path.read_bytes()
    expected = policy.act(OBSERVATIONS, seed=0)
    source = np.random.default_rng(0)
    said = 0
    for _ in range(100):
        place = int(source.integers(len(intact)))
        changed = bytearray(intact)
        changed[place] = int(source.integers(256))
        path.write_bytes(changed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loaded = load_policy(tmp_path, device="cpu")
        assert loaded.config == policy.config
        assert np.array_equal(loaded.act(OBSERVATIONS, seed=0), expected)
        said += any("does not show the policy" in str(one.message) for one in caught)
    assert said > 80  # not where white space became other white space
    path.unlink()
    assert np.array_equal(load_policy(tmp_path, device="cpu").act(OBSERVATIONS, seed=0), expected)


@pytest.mark.parametrize("file", ["policy.safetensors", "policy.json"])
@pytest.mark.filterwarnings("ignore:.*does not show the policy")
def test_a_kill_while_saving_leaves_one_policy_or_the_other(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = whole(), whole(candidates=2, kind="diffusion")
    old.save(tmp_path)
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if target.name == file:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        new.save(tmp_path)
    loaded, expected = load_policy(tmp_path, device="cpu"), new if file == "policy.json" else old
    assert loaded.config == expected.config
    assert np.array_equal(loaded.act(OBSERVATIONS, seed=0), expected.act(OBSERVATIONS, seed=0))


def test_every_flipped_bit_of_the_whole_is_noticed(tmp_path: Path) -> None:
    whole().save(tmp_path)
    path = tmp_path / "policy.safetensors"
    intact, source = path.read_bytes(), np.random.default_rng(0)
    for _ in range(100):
        changed = bytearray(intact)
        changed[int(source.integers(len(intact)))] ^= 1 << int(source.integers(8))
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"policy\.safetensors"):
            load_policy(tmp_path, device="cpu")


def test_a_policy_is_found_in_the_folder_of_its_run(tmp_path: Path) -> None:
    whole().save(tmp_path / "run" / "policy")
    expected = whole().act(OBSERVATIONS, seed=0)
    for folder in (tmp_path / "run", tmp_path / "run" / "policy"):
        assert np.array_equal(load_policy(folder, device="cpu").act(OBSERVATIONS, seed=0), expected)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
@pytest.mark.parametrize("file", ["policy.safetensors", "policy.json"])
@pytest.mark.filterwarnings("ignore:.*does not show the policy")
def test_a_pipe_and_a_device_are_no_files(file: str, tmp_path: Path) -> None:
    """Neither is waited for, nor read without an end."""
    policy = whole()
    policy.save(tmp_path)
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        (tmp_path / file).unlink()
        make(tmp_path / file)
        if file == "policy.safetensors":
            with pytest.raises(ValueError, match="is a device, a pipe or a socket"):
                load_policy(tmp_path, device="cpu")
        else:
            assert load_policy(tmp_path, device="cpu").config == policy.config


def test_broken_tensors(tmp_path: Path) -> None:
    whole().save(tmp_path / "a")
    path = tmp_path / "a" / "policy.safetensors"
    intact = path.read_bytes()
    for content in (intact[:-10], intact[:20], b"", b"nonsense" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as a policy"):
            load_policy(tmp_path / "a")
    path.unlink()
    with pytest.raises(FileNotFoundError):
        load_policy(tmp_path / "a")


def test_files_of_different_policies(tmp_path: Path) -> None:
    whole().save(tmp_path / "a")
    other = whole(candidates=2, kind="diffusion")
    other.save(tmp_path / "b")
    shutil.copy(tmp_path / "b" / "policy.safetensors", tmp_path / "a")
    with pytest.warns(UserWarning, match="does not show the policy in policy.safetensors"):
        loaded = load_policy(tmp_path / "a", device="cpu")
    assert loaded.config == other.config
    tensors, meta = load_tensors(tmp_path / "b" / "policy.safetensors", "policy")
    mixed = {name: value for name, value in tensors.items() if name.startswith("q.")}
    save_tensors(tmp_path / "b" / "policy.safetensors", "policy", mixed, meta)
    with pytest.raises(ValueError, match="they come from different policies"):
        load_policy(tmp_path / "b", device="cpu")


def test_the_largest_actions_lie_within_the_bounds() -> None:
    """Also after rounding: an environment that checks its action space would refuse them."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        low, high = np.sort(
            rng.normal(size=(2, 2)) * 10 ** rng.uniform(-3, 3, (2, 2)), axis=0
        ).astype(np.float32)
        spec = SPEC.model_copy(
            update={
                "actions": SPEC.actions.model_copy(
                    update={"low": tuple(low.tolist()), "high": tuple(high.tolist())}
                )
            }
        )
        policy = make_policy(spec, Affine(), candidates=1, selection=Selection(), q=None)
        for edge in (-50.0, 50.0):
            action = policy.act(np.array([edge, 0, 0]), deterministic=True)
            assert (action >= low).all()
            assert (action <= high).all()


@pytest.mark.parametrize("shape", [(48, 1), (48, 2), (2, 6, 8), (47,)])
def test_a_critic_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    """Members come first: (48, 2) in place of (2, 48) would otherwise be read in the wrong
    order, silently.
    """
    policy = affine(candidates=8, q=lambda observations, actions: torch.zeros(shape))
    with pytest.raises(
        ValueError, match=r"expected q\(observations, actions\) of shape \(M, 48\) or \(48,\), got "
    ):
        policy.act(OBSERVATIONS)
