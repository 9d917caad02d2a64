"""The numbers are the same, bit for bit, whatever torch's default dtype and device are.

A default device of "meta" stands for any other than the CPU: what lands there by mistake has no
numbers at all.
"""

from __future__ import annotations

import ast
import contextlib
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch

import ddice
from ddice.dice_backends import PiecewiseF, StateCorrection
from ddice.extractors import GaussianBC
from ddice.ope import FittedQEvaluation, estimate_value
from ddice.policies.export import export
from ddice.policies.exported import ExportedPolicy
from ddice.runs.recipe import Recipe

PACKAGE = Path(ddice.__file__).parent
STEPS = 3
Numbers = dict[str, np.ndarray]


@contextlib.contextmanager
def float64_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def another_device_by_default() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


DEFAULTS = {"float64": float64_by_default, "meta": another_device_by_default}
under_other_defaults = pytest.mark.parametrize("default", DEFAULTS)


def data() -> Any:
    return ddice.load_dataset(small.arrays(), action_bounds=(-2, 2))


def numbers(policy: Any) -> Numbers:
    """What a policy does, in numpy, however it is asked."""
    rows = small.arrays()["observations"][:4]
    return {
        "one": policy.act(rows[0], seed=0),
        "batch": policy.act(rows, seed=0),
        "seeds": policy.act(rows, seed=[3, 2, 1, 0]),
        "deterministic": policy.act(rows, deterministic=True),
        "float64 observations": policy.act(rows.astype(np.float64), seed=0),
        "tensor": policy.act(torch.from_numpy(rows), seed=0).numpy(),
    }


def trained(backend: str, extractor: str, spacing: str = "quadratic") -> Numbers:
    """The fingerprint, the ratios and the decisions of a whole training."""
    changes: Any = {"backend": {"kind": backend, **small.BACKENDS[backend]}}
    changes["extractor"] = {"kind": extractor, **small.EXTRACTORS[extractor]}
    if "solver" in changes["extractor"]:
        changes["extractor"]["solver"] = {**small.SOLVER, "spacing": spacing}
    recipe = Recipe.model_validate({**small.recipe("unread.npz").model_dump(), **changes})
    found = data()
    fit = {"steps": STEPS, "seed": 0, "progress": False, "device": "cpu"}
    prior = recipe.prior.fit(found, **fit)
    ratios = recipe.backend.fit(found, **fit)
    policy = recipe.extractor.fit(found, prior=prior, backend=ratios, **fit)
    batch = found.sample(16, seed=0, step=0)
    log_ratio = ratios.log_ratio(batch).detach().numpy()
    name = np.frombuffer(found.spec.fingerprint.encode(), np.uint8)
    return {"fingerprint": name, "log_ratio": log_ratio, **numbers(policy)}


@cache
def policy() -> Any:
    """Trained under torch's own defaults."""
    recipe = small.recipe("unread.npz")
    found = data()
    fit = {"steps": STEPS, "seed": 0, "progress": False, "device": "cpu"}
    prior = recipe.prior.fit(found, **fit)
    ratios = recipe.backend.fit(found, **fit)
    return recipe.extractor.fit(found, prior=prior, backend=ratios, **fit)


def saved_and_loaded(folder: Path) -> Numbers:
    policy().save(folder / "policy")
    return numbers(ddice.load_policy(folder / "policy", device="cpu"))


def engine(name: Any) -> Callable[[Path], Numbers]:
    return lambda folder: numbers(policy().compile(name))


def exported(folder: Path) -> Numbers:
    export(policy(), folder / "export")
    acting = ExportedPolicy(folder / "export" / "policy.onnx")
    rows = small.arrays()["observations"][:4]
    return {
        "seeded": acting.act(rows, seed=0),
        "deterministic": acting.act(rows, deterministic=True),
    }


def off_policy(folder: Path) -> Numbers:
    found = data()
    fit = {"steps": STEPS, "seed": 0, "progress": False, "device": "cpu"}
    backend = PiecewiseF.model_validate(small.BACKENDS["piecewise_f"]).fit(found, **fit)
    behaviour = GaussianBC.model_validate(small.EXTRACTORS["gaussian_bc"])
    fitted = FittedQEvaluation.model_validate({"critic": small.NETWORK, "samples": 2}).fit(
        found, policy=behaviour.fit(found, backend=backend, **fit), **fit
    )
    corrected = StateCorrection().fit(found, backend=backend, **fit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        by_ratio = estimate_value(corrected, found, repetitions=5)
    q = fitted.estimate(found, repetitions=5)
    given = (by_ratio.self_normalised.value, by_ratio.flow_residual, q.value, q.low, q.high)
    return {"estimates": np.array(given)}


def evaluated(folder: Path) -> Numbers:
    scores = ddice.evaluate(policy(), small.SHORT, episodes=2, seed=0, progress=False)
    return {"returns": np.array(scores.returns)}


DOINGS = {
    "saved and loaded": saved_and_loaded,
    "reference": engine("reference"),
    "eager": engine("eager"),
    "onnx": engine("onnx"),
    "exported": exported,
    "off-policy": off_policy,
    "evaluated": evaluated,
}


def assert_same(got: Numbers, expected: Numbers) -> None:
    for name, array in expected.items():
        assert got[name].dtype == array.dtype, name
        np.testing.assert_array_equal(got[name], array, err_msg=name)


@under_other_defaults
@pytest.mark.parametrize(
    ("backend", "extractor", "spacing"),
    [
        ("piecewise_f", "guide_then_select", "log_snr"),
        ("f_dice", "weighted_bc", "quadratic"),
        ("deterministic", "select_only", "uniform"),
        ("orthogonal", "gaussian_bc", "uniform"),
        ("optidice", "guide_then_select", "quadratic"),
        ("given", "weighted_bc", "log_snr"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_training_gives_the_same_numbers(default, backend, extractor, spacing) -> None:
    expected = trained(backend, extractor, spacing)
    with DEFAULTS[default]():
        got = trained(backend, extractor, spacing)
    assert_same(got, expected)


@under_other_defaults
@pytest.mark.parametrize("doing", DOINGS)
@pytest.mark.filterwarnings("ignore")
def test_what_was_trained_does_the_same(default, doing, tmp_path: Path) -> None:
    expected = DOINGS[doing](tmp_path / "expected")
    with DEFAULTS[default]():
        got = DOINGS[doing](tmp_path / "got")
    assert_same(got, expected)


NUMBERS = {"as_tensor", "empty", "eye", "full", "linspace", "logspace", "normal", "ones"} | {
    "rand", "randn", "scalar_tensor", "tensor", "zeros",
}  # fmt: skip
INDICES = {"arange", "randint", "randperm"}  # int64 for integers


def implicit(source: str) -> Iterator[str]:
    """Calls that make a tensor of torch's default dtype or on its default device."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, owner = node.func.attr, node.func.value
        if not isinstance(owner, ast.Name) or owner.id != "torch":
            continue
        given = {keyword.arg for keyword in node.keywords}
        asked = {"dtype", "device"} if name in NUMBERS else {"device"} if name in INDICES else set()
        if name == "Generator" and not node.args:
            asked = {"device"}
        if missing := sorted(asked - given):
            yield f"line {node.lineno}: torch.{name}(...) without {', '.join(missing)}"


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "kernels.py"],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_every_tensor_is_made_with_its_dtype_and_device(path: Path) -> None:
    assert not list(implicit(path.read_text())), "say dtype= and device=, or use the new_* of one"


def test_the_reader_of_calls_sees_what_it_should() -> None:
    assert list(implicit("x = torch.zeros(3, dtype=d)")) == [
        "line 1: torch.zeros(...) without device"
    ]
    assert list(implicit("torch.Generator()")) == ["line 1: torch.Generator(...) without device"]
    assert not list(implicit("torch.zeros(3, dtype=d, device=c); x.new_zeros(3); torch.cat(y)"))
    assert not list(implicit("torch.Generator(device); torch.arange(3, device=c)"))
