"""The exported policy, run without torch, against the policy it came from."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from test_engines import GUIDANCES, SCORES, make

from ddice.cli import main
from ddice.data.spec import Normalizer, ObservationPart, Observations
from ddice.diffusion.networks import MLP
from ddice.diffusion.prior import DiffusionPrior
from ddice.diffusion.samplers import Actor, Diffusion, Gaussian, Selection
from ddice.diffusion.solvers import FEW_STEPS
from ddice.policies.export import export
from ddice.policies.exported import ExportedPolicy, seal
from ddice.policies.policy import Policy, make_policy

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def policy(**changes: object) -> Policy:
    sampler = Diffusion(
        prior=DiffusionPrior(network=SCORES["residual"]),
        guidance=GUIDANCES["silu"],
        clip_denoised=False,
    )
    made = make(sampler, **changes)  # type: ignore[arg-type]
    box = made.spec.actions.model_copy(update={"low": (-2.0, 0.5), "high": (4.0, 0.75)})
    made.spec = made.spec.model_copy(update={"actions": box})
    return made


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_actions_in_the_units_of_the_environment(batch: int | None, tmp_path: Path) -> None:
    """Deterministic actions equal the policy's, for one state and for more than a fixed batch
    holds.
    """
    original = policy()
    report = export(original, tmp_path, batch=batch)
    assert report.largest_error < 1e-5
    assert report.other_choices <= 2
    loaded = ExportedPolicy(tmp_path / "policy.onnx")
    observations = (
        np.random.default_rng(0)
        .normal(size=(7, original.spec.observations.size))
        .astype(np.float32)
    )
    expected = original.act(observations, deterministic=True)
    np.testing.assert_allclose(loaded.act(observations, deterministic=True), expected, atol=3e-5)
    np.testing.assert_allclose(
        loaded.act(observations[0], deterministic=True), expected[0], atol=3e-5
    )
    assert json.loads((tmp_path / "parity.json").read_text())["decisions"] == report.decisions


def test_a_softmax_selection_samples_and_takes_the_argmax(tmp_path: Path) -> None:
    original = policy(selection=Selection(rule="softmax", temperature=0.1), candidates=7)
    export(original, tmp_path)
    loaded, source = ExportedPolicy(tmp_path / "policy.onnx"), torch.Generator().manual_seed(0)
    observations, noise = (
        torch.randn(50, original.spec.observations.size, generator=source),
        torch.randn(50, 7, 2, generator=source),
    )
    uniform = torch.rand(50, generator=source)
    for numbers, given in ((uniform, uniform), (torch.full((50,), -1.0), None)):
        got = loaded.run(observations.numpy(), noise.numpy(), numbers.numpy())
        np.testing.assert_array_equal(
            got["chosen"], original.decide(observations, noise, given).chosen
        )
    assert (
        original.decide(observations, noise, uniform).chosen
        != original.decide(observations, noise).chosen
    ).any()


def test_stochastic_actions_follow_their_seed(tmp_path: Path) -> None:
    """Of 50 states: in one of them two samples may well leave the bounds by the same corner, and
    be the same action.
    """
    export(policy(candidates=1), tmp_path)
    loaded, observations = (
        ExportedPolicy(tmp_path / "policy.onnx"),
        np.zeros((50, policy().spec.observations.size)),
    )
    assert np.array_equal(loaded.act(observations, seed=3), loaded.act(observations, seed=3))
    assert not np.array_equal(loaded.act(observations, seed=3), loaded.act(observations, seed=4))
    assert not np.array_equal(loaded.act(observations), loaded.act(observations))


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_the_noise_scale_of_a_policy(scale: float, tmp_path: Path) -> None:
    """The standard normal numbers of a seed, scaled, through the policy itself."""
    original = policy(candidates=1).with_settings(noise_scale=scale)
    assert original.config.noise_scale == scale
    export(original, tmp_path)
    observations = np.zeros((5, original.spec.observations.size), np.float32)
    got = ExportedPolicy(tmp_path / "policy.onnx").act(observations, seed=3)
    noise = np.random.default_rng(3).standard_normal((5, 1, 2), dtype=np.float32)
    unit = original.decide(torch.as_tensor(observations), torch.as_tensor(scale * noise)).actions
    np.testing.assert_allclose(got, original.spec.actions.from_unit(unit.numpy()), atol=1e-5)


@pytest.mark.parametrize(
    ("sampler", "candidates"), [(Gaussian(), 4), (Actor(), 1)], ids=["gaussian", "actor"]
)
def test_a_policy_without_diffusion(
    sampler: Gaussian | Actor, candidates: int, tmp_path: Path
) -> None:
    original = make(sampler, candidates=candidates)
    export(original, tmp_path)
    observations = (
        np.random.default_rng(0)
        .normal(size=(5, original.spec.observations.size))
        .astype(np.float32)
    )
    got = ExportedPolicy(tmp_path / "policy.onnx").act(observations, deterministic=True)
    np.testing.assert_allclose(got, original.act(observations, deterministic=True), atol=1e-5)


def test_the_script_runs_without_torch_and_without_ddice(tmp_path: Path) -> None:
    original = policy()
    export(original, tmp_path / "export")
    observations = (
        np.random.default_rng(0)
        .normal(size=(3, original.spec.observations.size))
        .astype(np.float32)
    )
    np.save(tmp_path / "observations.npy", observations)
    blocked = (
        "import sys, runpy; sys.modules['torch'] = sys.modules['ddice'] = None; sys.argv = "
        "sys.argv[1:]; "
    )
    code = f"{blocked}runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [
        sys.executable,
        "-c",
        code,
        str(tmp_path / "export" / "act.py"),
        str(tmp_path / "observations.npy"),
        "--deterministic",
    ]
    printed = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout
    np.testing.assert_allclose(
        json.loads(printed), original.act(observations, deterministic=True), atol=3e-5
    )


def test_an_environment_with_a_dict(tmp_path: Path) -> None:
    original = policy()
    size = original.spec.observations.size
    parts = (
        ObservationPart(path="body/position", shape=(1,)),
        ObservationPart(path="speed", shape=(size - 1,)),
    )
    original.spec = original.spec.model_copy(update={"observations": Observations(parts=parts)})
    export(original, tmp_path)
    observation = {
        "speed": np.arange(size - 1.0),
        "body": {"position": np.array([0.5]), "unused": np.zeros(3)},
    }
    loaded = ExportedPolicy(tmp_path / "policy.onnx")
    np.testing.assert_allclose(
        loaded.act(observation, deterministic=True),
        original.act(observation, deterministic=True),
        atol=3e-5,
    )
    with pytest.raises(ValueError, match=r"key 'speed', .* of 3 numbers, got \['body'\]"):
        loaded.act({"body": observation["body"]})


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(policy(), tmp_path)
    loaded, size = ExportedPolicy(tmp_path / "policy.onnx"), policy().spec.observations.size
    with pytest.raises(ValueError, match=r"NaN or infinity at \[1, 0\]"):
        loaded.act(np.array([[0.0] * size, [np.nan] + [0.0] * (size - 1)]))
    for wrong in (np.zeros(size + 1), np.zeros((0, size)), np.zeros((1, 2, size))):
        with pytest.raises(ValueError, match=r"expected (one |at least one )?observation"):
            loaded.act(wrong)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ExportedPolicy(tmp_path / "other.onnx")
    monkeypatch.setattr(
        loaded, "run", lambda *_: {"actions": np.array([[0.0, 0.0], [0.0, np.nan]])}
    )
    with pytest.raises(
        ValueError, match="no action for row 1 but NaN: the observation lies far outside its data"
    ):
        loaded.act(np.zeros((2, size)))
    model = onnx.load(tmp_path / "policy.onnx")
    kept = [one for one in model.metadata_props if one.key not in ("ddice.schema", "ddice.digest")]
    for value, message in (
        ("2", "has schema 2, this file reads 3"),
        (None, "not one that ddice export wrote"),
    ):
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
        if value:
            model.metadata_props.add(key="ddice.schema", value=value)
        body = model.SerializeToString()
        (tmp_path / "other.onnx").write_bytes(body + seal(body))
        with pytest.raises(ValueError, match=message):
            ExportedPolicy(tmp_path / "other.onnx")
    (tmp_path / "other.onnx").write_bytes(b"nonsense" + seal(b"nonsense"))
    with pytest.raises(ValueError, match="cannot be read as an ONNX model"):
        ExportedPolicy(tmp_path / "other.onnx")


def test_every_change_of_the_file_is_noticed(tmp_path: Path) -> None:
    export(policy(), tmp_path)
    path, source = tmp_path / "policy.onnx", np.random.default_rng(0)
    intact = path.read_bytes()
    onnx.checker.check_model(onnx.load_from_string(intact))
    damaged = [b"", intact[:20], intact[:1000], intact[:-1], intact + b"\0", intact[:-49]]
    for _ in range(100):
        changed = bytearray(intact)
        changed[int(source.integers(len(intact)))] ^= 1 << int(source.integers(8))
        damaged.append(bytes(changed))
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged, or not a model that ddice export"):
            ExportedPolicy(path)


SHAPES = {
    "matrix": (("", (2, 3)),),
    "one row": (("", (1, 6)),),
    "vector": (("", (6,)),),
    "dict": (("a", (2,)), ("b/c", (2, 2))),
}
GIVEN = {
    "matrix": np.zeros((2, 3)),
    "row": np.zeros((1, 6)),
    "vector": np.zeros(6),
    "batch of vectors": np.zeros((4, 6)),
    "batch of matrices": np.zeros((4, 2, 3)),
    "batch of rows": np.zeros((4, 1, 6)),
    "two batch axes": np.zeros((2, 4, 6)),
    "empty batch": np.zeros((0, 6)),
    "empty batch of matrices": np.zeros((0, 2, 3)),
    "list": [0.0] * 6,
    "integers": np.zeros(6, int),
    "number": 0.0,
    "too large": np.full(6, 1e39),
    "infinite": np.full((2, 3), np.inf),
    "dict": {"a": np.zeros(2), "b": {"c": np.zeros((2, 2))}},
    "batch of dicts": {"a": np.zeros((4, 2)), "b": {"c": np.zeros((4, 2, 2))}},
    "exchanged": {"a": np.zeros(4), "b": {"c": np.zeros(2)}},
    "flat leaf": {"a": np.zeros(2), "b": {"c": np.zeros(4)}},
    "missing": {"a": np.zeros(2)},
    "too deep": {"a": {"b": np.zeros(2)}, "b": {"c": np.zeros((2, 2))}},
    "different batches": {"a": np.zeros((3, 2)), "b": {"c": np.zeros((4, 2, 2))}},
    "one leaf of a batch": {"a": np.zeros(2), "b": {"c": np.zeros((4, 2, 2))}},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_it_takes_and_refuses_what_the_policy_does(shape: str, tmp_path: Path) -> None:
    parts = tuple(ObservationPart(path=path, shape=one) for path, one in SHAPES[shape])
    network = MLP(hidden=(4,))
    spec = policy().spec.model_copy(
        update={
            "observations": Observations(parts=parts),
            "normalizer": Normalizer(mean=(0.0,) * 6, std=(1.0,) * 6),
        }
    )
    sampler = Gaussian(network=network).build(spec)
    original = make_policy(spec, sampler, candidates=1, selection=Selection(), q=None)
    export(original, tmp_path)
    loaded = ExportedPolicy(tmp_path / "policy.onnx")
    taken = 0
    for name, given in GIVEN.items():
        try:
            expected = original.act(given, deterministic=True)
        except ValueError:
            with pytest.raises(ValueError):  # noqa: PT011 - its words are its own
                loaded.act(given, deterministic=True)
            continue
        taken += 1
        got = loaded.act(given, deterministic=True)
        assert got.shape == expected.shape, name
        np.testing.assert_allclose(got, expected, atol=3e-5, err_msg=name)
    assert taken >= 2


def test_seeds_are_what_they_are_for_the_policy(tmp_path: Path) -> None:
    original = policy()
    export(original, tmp_path)
    loaded = ExportedPolicy(tmp_path / "policy.onnx")
    rows = np.random.default_rng(0).normal(size=(3, original.spec.observations.size))
    each = loaded.act(rows, seed=[5, np.int64(-7), 5])
    np.testing.assert_allclose(each[0], loaded.act(rows[0], seed=5), atol=1e-6)
    np.testing.assert_allclose(each[1], loaded.act(rows[1], seed=-7), atol=1e-6)
    assert not np.allclose(loaded._noise(1, -7)[0], loaded._noise(1, 7)[0])
    for acting in (original, loaded):
        with pytest.raises(ValueError, match="one for each of the 3 observations, got 2"):
            acting.act(rows, seed=[1, 2])


def test_what_cannot_be_exported_is_said(tmp_path: Path) -> None:
    own = policy()
    own.q = lambda observations, actions: actions.sum(-1)
    with pytest.raises(ValueError, match="not covered: a Q that is a callable of your own"):
        export(own, tmp_path / "own")
    assert not (tmp_path / "own").exists()


def test_two_threads_at_once(tmp_path: Path) -> None:
    original = policy()
    export(original, tmp_path)
    loaded = ExportedPolicy(tmp_path / "policy.onnx")
    compiled = original.compile("onnx")
    rows = [
        np.random.default_rng(seed)
        .normal(size=(4, original.spec.observations.size))
        .astype(np.float32)
        for seed in range(8)
    ]
    expected = [original.act(row, deterministic=True) for row in rows]
    found: dict[int, list[np.ndarray]] = {}

    def work(index: int) -> None:
        found[index] = [
            p.act(rows[index], deterministic=True)
            for p in (loaded, compiled, original.compile("eager"))
            for _ in range(5)
        ]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(8):
        for got in found[index]:
            np.testing.assert_allclose(got, expected[index], atol=3e-5)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = policy()
    original.save(tmp_path / "run" / "policy")
    assert main(["export", str(tmp_path / "run"), "--batch", "1"]) == 0
    printed = capsys.readouterr().out
    assert str(tmp_path / "run" / "export" / "policy.onnx") in printed
    assert sorted(path.name for path in (tmp_path / "run" / "export").iterdir()) == [
        "act.py",
        "parity.json",
        "policy.onnx",
    ]
    assert (
        main(
            [
                "export",
                str(tmp_path / "run"),
                "--few-steps",
                "--candidates",
                "1",
                "--out",
                str(tmp_path / "few"),
            ]
        )
        == 0
    )
    few = original.with_settings(solver=FEW_STEPS, candidates=1)
    observation = np.ones(original.spec.observations.size, dtype=np.float32)
    np.testing.assert_allclose(
        ExportedPolicy(tmp_path / "few" / "policy.onnx").act(observation, deterministic=True),
        few.act(observation, deterministic=True),
        atol=3e-5,
    )
    assert main(["export", str(tmp_path / "run"), "--batch", "0"]) == 1
    assert main(["export", str(tmp_path / "nothing")]) == 1
    assert "expected --batch of at least 1" in (errors := capsys.readouterr().err)
    assert "holds no policy" in errors


@pytest.mark.parametrize(
    ("error", "own", "refused"),
    [(9e-6, 0.0, False), (2e-5, 1e-6, True), (2e-5, 6e-6, False), (5e-5, 1.2e-5, True)],
)
def test_an_export_may_be_as_far_off_as_the_policys_own_rounding(
    error: float, own: float, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 1e-5, or four times what the policy itself is off in float32."""
    from ddice.policies import export as module

    found = module.Parity(
        decisions=256, largest_error=error, own_error=own, other_choices=0, bytes=1, versions={}
    )
    monkeypatch.setattr(module, "_parity", lambda *_: found)
    if refused:
        with pytest.raises(ValueError, match="the exported policy differs from the policy"):
            module.export(policy(), tmp_path)
    else:
        assert module.export(policy(), tmp_path) == found


def test_the_own_rounding_is_that_of_float32(tmp_path: Path) -> None:
    """Some roundings of 6e-8 in a chain of layers and evaluations: above one of them, below
    thousands.
    """
    from ddice.policies.export import export

    assert 1e-8 < export(policy(), tmp_path).own_error < 1e-5
