"""Whatever is given to the public interface: it works, with finite numbers, or says what is wrong
in words of ours. Never an error of a library below, and never one that a caller takes for
something else, such as StopIteration.
"""

from __future__ import annotations

import contextlib
import io
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import ddice
from ddice import load_dataset
from ddice.cli import main
from ddice.core.config import merge
from ddice.data import Transitions
from ddice.data.quality import check
from ddice.parts.loop import TrainingDiverged
from ddice.parts.stage import Stage, run_stage
from ddice.policies.policy import Policy
from ddice.runs.recipe import Recipe
from ddice.runs.stages import Stages

PACKAGE = str(Path(ddice.__file__).parent)


def sizes(gate: int, many: int) -> Any:
    """A test of so many cases in the gate, and of so many more among the slow ones; all kinds
    together have 300 and 10,000.
    """
    slow = pytest.param(many, marks=pytest.mark.slow)
    return pytest.mark.parametrize("cases", [gate, slow], ids=["gate", "many"])


def explore(cases: int, strategy: st.SearchStrategy[Any], look: Callable[[Any], None]) -> None:
    """Call `look` with so many drawn values, the same in every run; the smallest that fails is
    shown.
    """

    @settings(
        max_examples=cases,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(value: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            look(value)

    run()


@contextlib.contextmanager
def only_our_errors() -> Iterator[None]:
    """ValueError and TypeError raised by a line of ddice, with a message, are right answers; so are
    pydantic's about a configuration, which name the field.
    """
    try:
        yield
    except ValidationError:
        return
    except (ValueError, TypeError, TrainingDiverged) as error:
        _require_ours(error)


def _require_ours(error: Exception) -> None:
    last = traceback.extract_tb(error.__traceback__)[-1]
    assert last.filename.startswith(PACKAGE), f"{last.filename}:{last.lineno}: {error!r}"
    assert str(error)


# -- arrays

SPECIAL = (0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e15, 1e20, 1e38, 1e300, 1e-300, 10**400)
DTYPES = ("int8", "uint8", "int64", "uint64", "float16", "float64", "bool", "complex64", "object",
          "str", "bytes", "datetime64[s]", "longdouble")  # fmt: skip
SHAPES = ((), (0,), (1,), (3,), (20,), (20, 1), (20, 3), (1, 20, 3), (0, 3), (20, 0), (2, 2, 2))
ODD = (
    None, "text", b"bytes", 3, 2.5, True, [], {}, (), [1, [2]], [[1], [2, 3]], {"": {}}, {1: 2},
    {"a/b": [1.0]}, object(), range(3), float("nan"), 10**400, np.datetime64("2020"), np.float32(1),
    lambda: 0, {"x": {}}, {"x": None}, [None, 1], set(), iter(()),
)  # fmt: skip


def _cast(array: np.ndarray, dtype: str) -> Any:
    with np.errstate(all="ignore"):
        return np.nan_to_num(array).astype("int64" if "date" in dtype else "float64").astype(dtype)


def _tensor(array: np.ndarray, kind: str) -> Any:
    tensor = torch.as_tensor(np.asarray(array, np.float32))
    return {
        "dense": lambda: tensor,
        "bfloat16": lambda: tensor.bfloat16(),
        "sparse": lambda: tensor.to_sparse(),
        "meta": lambda: tensor.to("meta"),
        "grad": lambda: tensor.clone().requires_grad_(),
        "complex": lambda: tensor.to(torch.complex64),
        "integers": lambda: torch.nan_to_num(tensor).to(torch.int32),
    }[kind]()


TENSORS = ("dense", "bfloat16", "sparse", "meta", "grad", "complex", "integers")


def _poison(array: np.ndarray, value: Any, where: int) -> Any:
    changed = np.array(array, object if isinstance(value, int) and value > 1e300 else float)
    if changed.size:
        changed.flat[where % changed.size] = value
    return changed


def spoiled(array: np.ndarray) -> st.SearchStrategy[Any]:
    """The array itself, or something else in its place."""
    return st.one_of(
        st.just(array),
        st.sampled_from(DTYPES).map(lambda dtype: _cast(array, dtype)),
        st.tuples(st.sampled_from(SPECIAL), st.integers(0, 1000)).map(
            lambda one: _poison(array, *one)
        ),
        st.sampled_from(SHAPES).map(np.zeros),
        st.sampled_from(TENSORS).map(lambda kind: _tensor(array, kind)),
        st.sampled_from(ODD).map(_fresh),
        st.just(np.ma.masked_array(array, mask=np.zeros(np.shape(array), bool) + True)),
        st.just(array[:-1] if np.ndim(array) else array),
        st.just(np.asarray(array).tolist()),
    )


def _fresh(value: Any) -> Any:
    """An iterator would be empty after its first use."""
    return iter(()) if type(value).__name__ == "tuple_iterator" else value


# -- datasets


def _datasets() -> st.SearchStrategy[tuple[dict[Any, Any], dict[str, Any]]]:
    arrays = {key: value[:20] for key, value in small.arrays().items()}
    arrays["next_observations"] = arrays["observations"] + 1
    keys = sorted(arrays)
    pairs = ((-2, 2), (2, -2), (0, 1e308), (-1e308, 1e308), (np.nan, 1), (1,), 3, "data", "x", (),
             ([-2], [2]), ([-2, -2], [2, 2]), (10**400, 1), (-(10**400), 10**400))  # fmt: skip
    options = {
        "action_bounds": st.sampled_from(pairs),
        "reference_scores": st.sampled_from(
            ((0, 1), (1, 1), (5,), 5, (0, 1e308), (0, 10**400), "x", (None, 1), (1, 2, 3), ())
        ),
        "out_of_bounds": st.sampled_from(("error", "clip", "x", 3)),
        "env": st.sampled_from(("Pendulum-v1", "No-v0", "no:No-v0", ":", 3, "")),
        "episode_steps": st.sampled_from((1, 5, 0, -1, 10**400, 2.5, "x")),
        "goal": st.sampled_from(("fixed", "observed", "x", 3)),
    }
    changed = st.fixed_dictionaries(
        {}, optional={key: st.one_of(spoiled(arrays[key]), st.just(MISSING)) for key in keys}
    ).map(
        lambda changes: {
            key: value for key, value in {**arrays, **changes}.items() if value is not MISSING
        }
    )
    extra = st.one_of(
        st.just({}),
        st.dictionaries(
            st.sampled_from(("rewrds", "", "a/b", 1, None)), st.just(arrays["rewards"])
        ),
        spoiled(arrays["rewards"]).map(lambda value: {"weights": value}),
        spoiled(arrays["observations"]).map(lambda value: {"initial_observations": value}),
        spoiled(arrays["observations"]).map(
            lambda value: {"observations": {"x": arrays["observations"], "y": value}}
        ),
    )
    return st.tuples(
        st.tuples(changed, extra).map(lambda both: {**both[0], **both[1]}),
        st.fixed_dictionaries({}, optional=options).map(
            lambda given: {"action_bounds": (-2, 2), **given}
        ),
    )


MISSING = object()


@sizes(150, 4000)
def test_any_dataset_is_read_or_refused(cases: int) -> None:
    def look(value: tuple[dict[Any, Any], dict[str, Any]]) -> None:
        arrays, options = value
        with only_our_errors():
            data = load_dataset(arrays, **options)
            batch = data.sample(8, seed=0, step=0)
            for tensor in (batch.observations, batch.actions, batch.rewards, batch.weights):
                assert torch.isfinite(tensor).all()
            assert batch.actions.abs().max() <= 1 + 1e-5
            assert str(data.describe())
            assert isinstance(check(data), tuple)

    explore(cases, _datasets(), look)


# -- configurations

VALUES = (0, 1, 2, -1, 0.5, -0.5, 1e-30, 1e-308, 1e10, 1e20, 1e30, 1e31, 1e308, -1e308, 2**31,
          10**400, True, None, "x", "", "a:b", [], {}, [0], [-1], [8, 8], {"kind": "x"},
          [None])  # fmt: skip
LARGE = 2000  # units, rows or steps: more would take memory and time, as it should


class OneStep(Stages):
    def do(self, stage: Stage) -> None:
        if stage.stop > stage.start:
            run_stage(stage, self.data, progress=False)


@cache
def _small_data() -> Transitions:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_dataset(small.arrays(), env=small.SHORT)


def _leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))


@cache
def _recipe(backend: str, extractor: str) -> tuple[dict[str, Any], tuple[tuple[str, ...], ...]]:
    fields = {
        **small.FIELDS,
        "backend": {"kind": backend, **small.BACKENDS[backend]},
        "extractor": {"kind": extractor, **small.EXTRACTORS[extractor]},
        "steps": {"prior": 1, "backend": 1, "extractor": 1},
        "evaluation": {"episodes": 0},
        "device": "cpu",
    }
    full = Recipe.model_validate(fields).model_dump(mode="json")
    return full, tuple(path for path in _leaves(full) if path[0] != "data")


def _recipes() -> st.SearchStrategy[dict[str, Any]]:
    def change(both: tuple[str, str]) -> st.SearchStrategy[dict[str, Any]]:
        full, paths = _recipe(*both)
        one = st.tuples(st.sampled_from(paths), st.sampled_from(VALUES))
        return st.lists(one, min_size=1, max_size=2).map(lambda changes: _changed(full, changes))

    both = st.tuples(
        st.sampled_from(sorted(small.BACKENDS)), st.sampled_from(sorted(small.EXTRACTORS))
    )
    return both.flatmap(change)


def _changed(full: dict[str, Any], changes: list[tuple[tuple[str, ...], Any]]) -> dict[str, Any]:
    fields = full
    for path, value in changes:
        tree: Any = value
        for key in reversed(path):
            tree = {key: tree}
        fields = merge(fields, tree)
    return fields


def _largest(value: Any) -> int:
    """The largest whole number in a tree, whatever is a seed left out."""
    if isinstance(value, dict):
        return max((_largest(one) for key, one in value.items() if "seed" not in key), default=0)
    if isinstance(value, list):
        return max(map(_largest, value), default=0)
    return value if isinstance(value, int) else 0


@sizes(25, 1500)
def test_any_configuration_trains_or_is_refused(cases: int) -> None:
    def look(fields: dict[str, Any]) -> None:
        with only_our_errors():
            recipe = Recipe.read(fields, trust=["small"])
            if _largest(recipe.model_dump(mode="json")) > LARGE:
                return
            stages = OneStep(recipe, _small_data())
            stages.check()
            _, backend, extractor = stages.all()
            policy = extractor.policy(q=None if backend is None else backend.q)
            assert np.isfinite(policy.act(small.arrays()["observations"][:3], seed=0)).all()

    explore(cases, _recipes(), look)


# -- observations


@cache
def _policies() -> tuple[Policy, ...]:
    """One of flat observations, one of nested dicts; each of a diffusion model with a critic."""
    recipe = Recipe.model_validate({**small.FIELDS, "evaluation": {"episodes": 0}})
    arrays = small.arrays()
    nested = {"a": arrays["observations"][:, :1], "b": {"c": arrays["observations"][:, 1:]}}
    made = []
    for observations in (arrays["observations"], nested):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = load_dataset({**arrays, "observations": observations}, action_bounds=(-2, 2))
        parts = recipe.prior.build(data.spec, 0), recipe.backend.build(data.spec, 0)
        extractor = recipe.extractor.build(data.spec, 0, prior=parts[0])
        made.append(extractor.policy(q=parts[1].q))
    return tuple(made)


def _observations() -> st.SearchStrategy[Any]:
    flat = small.arrays()["observations"][:4]
    row = flat[0]
    leaf = st.one_of(spoiled(flat), spoiled(row), spoiled(flat[:, :1]), spoiled(flat[:, 1:]),
                     spoiled(row[:1]), spoiled(row[1:]))  # fmt: skip
    tree = st.fixed_dictionaries(
        {},
        optional={"a": leaf, "b": st.one_of(leaf, st.fixed_dictionaries({}, optional={"c": leaf}))},
    )
    return st.one_of(leaf, tree)


@sizes(75, 3000)
def test_any_observation_is_acted_on_or_refused(cases: int) -> None:
    def look(observation: Any) -> None:
        for policy in _policies():
            with only_our_errors():
                action = policy.act(observation, deterministic=True)
                if isinstance(action, torch.Tensor):
                    action = action.detach().numpy()
                assert np.isfinite(action).all()
                assert np.abs(action).max() <= 2

    explore(cases, _observations(), look)


# -- command lines


def _commands(folder: Path) -> st.SearchStrategy[list[str]]:
    """Lines that train nothing: what there is to read is a small file, or is not there."""
    npz = str(small.write_npz(folder / "small.npz"))
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "list.json").write_text("[1]")
    (folder / "good.json").write_text('{"seed": 3}')
    paths = st.sampled_from(
        [npz, "nowhere", str(folder), "/dev/null", "", "deep.json", "\x1b[2J", "\0"]
    )
    values = st.one_of(
        paths,
        st.sampled_from(["0", "-1", "1e308", "1" + "0" * 400, "NaN", "[" * 500, "{}", "null",
                         "true", '{"a": 1}', "a:b", "os:system", "deep.json", "list.json",
                         "good.json"]),
        st.text(max_size=8),
    )  # fmt: skip
    _, leaves = _recipe("piecewise_f", "guide_then_select")
    fields = st.sampled_from([".".join(path) for path in leaves])
    own = st.sampled_from(["json", "plot", "episodes", "seed", "engine", "trust", "trust-env",
                           "out", "states", "batch", "preset", "config", "run", "hook", "device",
                           "q", "checkpoint-every", "render", "few-steps",
                           "candidates"])  # fmt: skip
    option = st.tuples(st.one_of(own, fields), values).map(lambda pair: f"--{pair[0]}={pair[1]}")
    begin = st.sampled_from([
        ["status"], ["evaluate"], ["picture"], ["export"], ["data", "describe"], ["data", "check"],
        ["presets"], ["cache", "list"], ["data"], [], ["plugins"], ["evaluate", "nowhere"],
        ["train", "--dry-run", "--data.source=nowhere.npz"], ["x"], ["data", "make", "x"],
        ["compare", "--run=r", "--recipe.data.source=nowhere.npz"],
    ])  # fmt: skip
    rest = st.lists(st.one_of(option, values), max_size=3)
    return st.tuples(begin, rest).map(lambda both: [*both[0], *both[1]])


@sizes(50, 1500)
def test_any_command_line_ends_with_an_exit_status(
    cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))

    def look(line: list[str]) -> None:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = main(line)
            except SystemExit as end:  # of argparse, which has said why
                status = end.code
        assert status in (0, 1, 2)
        assert status == 0 or err.getvalue() or out.getvalue()
        assert "\x1b" not in err.getvalue()

    explore(cases, _commands(tmp_path), look)
