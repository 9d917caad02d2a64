"""Stages, cache keys, run folders; killed and interrupted runs against ones that nothing
disturbed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch

from ddice import load_policy
from ddice.cli import main
from ddice.core import cache
from ddice.core.storage import load_tensors, save_tensors
from ddice.parts import loop
from ddice.policies.evaluation import Evaluation
from ddice.runs.folder import FILE, check_run, claim_run, differences, note_of, read_recipe
from ddice.runs.forecast import forecast
from ddice.runs.training import Training, train

STEPS = {"prior": 200, "backend": 200, "extractor": 200}
HERE = str(Path(__file__).parent)


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "ddice.cli.train.plot_metrics", lambda *_: True
    )  # takes longer than all the rest


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_npz(tmp_path_factory.mktemp("data") / "small.npz")


pytestmark = pytest.mark.filterwarnings("ignore:.*rows dropped")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the stages that the loop really runs, as they come."""
    names: list[str] = []
    run = loop.run

    def spy(*args: Any, **options: Any) -> None:
        names.append(options["name"])
        run(*args, **options)

    monkeypatch.setattr(loop, "run", spy)
    return names


def quiet(_: str) -> None:
    pass


def go(recipe: Any, run: Path | None = None, **options: Any) -> Any:
    return train(recipe, run, progress=False, **{"say": quiet, **options})


def records(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, without those of watchers."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if "watcher" not in line]


# -- killed runs, as real processes


def command(npz: Path, run: Path, *more: str) -> list[str]:
    fields = {
        **small.FIELDS,
        "steps": STEPS,
        "data": {"source": str(npz), "env": small.ENV},
        "evaluation": {"episodes": 1},
    }
    options = ["--run", str(run), "--checkpoint-every", "10", "--no-progress", *more]
    return ["train", *small.flags(npz, fields), *options]


def start(
    arguments: list[str], cache_folder: Path, code: str | None = None
) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, (HERE, os.environ.get("PYTHONPATH"))))
    environment = {
        **os.environ,
        "DDICE_CACHE": str(cache_folder),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": path,
    }
    program = ["-m", "ddice.cli"] if code is None else ["-c", code]
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stop_when(
    process: subprocess.Popen[str], there: Callable[[], object], number: signal.Signals
) -> tuple[str, str]:
    """Send a signal as soon as `there()` holds; what the process had written. Fails if it ends
    before.
    """
    deadline = time.monotonic() + 600  # a guard against waiting for ever; nothing is timed
    while not there():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"ended before it could be stopped: {process.communicate()}")
        time.sleep(0.001)
    process.send_signal(number)
    return process.communicate()


def half_done(stage: str, folder: Path) -> Callable[[], bool]:
    """A checkpoint of the stage is there, and its state is not."""
    return lambda: (
        bool(list(folder.glob(f"{stage}/*/checkpoint.safetensors")))
        and not list(folder.glob(f"{stage}/*/state.safetensors"))
    )


def assert_half_done(stage: str, folder: Path) -> None:
    (checkpoint,) = folder.glob(f"{stage}/*/checkpoint.safetensors")
    assert not list(folder.glob(f"{stage}/*/state.safetensors"))
    assert 0 < load_tensors(checkpoint, loop.CHECKPOINT)[1]["step"] < STEPS["prior"], (
        f"{stage} was not stopped in the middle"
    )


def outcome(run: Path, cache_folder: Path) -> dict[str, Any]:
    """Everything that must not depend on interruptions: states, policy and metrics by their
    bytes, and the scores.
    """
    trained = [path.relative_to(cache_folder) for path in cache_folder.rglob("state.safetensors")]
    states = {
        f"cache/{path}": (cache_folder / path).read_bytes()
        for path in trained
        if path.parts[0] != "data"
    }
    files = {
        str(path.relative_to(run)): path.read_bytes()
        for pattern in ("metrics/*.jsonl", "policy/policy.*")
        for path in run.glob(pattern)
    }
    scores = json.loads((run / "evaluation.json").read_text())
    kept = {name: value for name, value in scores.items() if "seconds" not in name}
    return {**states, **files, "scores": kept}


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert sorted(one) == sorted(other)
    assert [name for name in one if one[name] != other[name]] == []


Undisturbed = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def undisturbed(npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """What runs that nothing disturbs give, staged and joint; in this process, with checkpoints
    at other steps.
    """
    found: Undisturbed = {}
    for schedule in ("staged", "joint"):
        folder = tmp_path_factory.mktemp(schedule)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DDICE_CACHE", str(folder / "cache"))
            patch.setattr("ddice.cli.train.plot_metrics", lambda *_: True)
            arguments = command(npz, folder / "run", "--schedule", schedule)
            arguments[arguments.index("--checkpoint-every") + 1] = "1000"
            assert main(arguments) == 0
        found[schedule] = outcome(folder / "run", folder / "cache")
    assert len(found["staged"]) == 3 + 3 + 2 + 1
    assert len(found["joint"]) == 2 + 2 + 2 + 1
    return found


@pytest.mark.gate
def test_kill_in_each_stage_and_resume(
    npz: Path, tmp_path: Path, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run, killed in the prior, again in the backend, again in the extractor; then the same
    command goes through.
    """
    folder = tmp_path / "killed"
    arguments = command(npz, tmp_path / "run")
    for stage in ("prior", "backend", "extractor"):
        process = start(arguments, folder)
        stop_when(process, half_done(stage, folder), signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert_half_done(stage, folder)
    monkeypatch.setenv("DDICE_CACHE", str(folder))
    assert main(arguments) == 0
    assert_same(outcome(tmp_path / "run", folder), undisturbed["staged"])
    assert not list(folder.rglob("checkpoint*"))
    for stage in STEPS:
        lines = records(tmp_path / "run" / "metrics" / f"{stage}.jsonl")
        assert [(line["stage"], line["step"]) for line in lines] == [(stage, 100), (stage, 200)]


@pytest.mark.gate
def test_kill_in_joint_training_and_resume(
    npz: Path, tmp_path: Path, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "killed"
    arguments = command(npz, tmp_path / "run", "--schedule", "joint")
    process = start(arguments, folder)
    stop_when(process, half_done("joint", folder), signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert_half_done("joint", folder)
    monkeypatch.setenv("DDICE_CACHE", str(folder))
    assert main(arguments) == 0
    assert_same(outcome(tmp_path / "run", folder), undisturbed["joint"])


KILL_AT = """
import os, signal, sys
target = sys.argv.pop(1)
replace = os.replace
def deadly(source, goal):
    if str(goal).endswith(target):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, goal)
os.replace = deadly
from ddice.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.gate
def test_kill_while_policy_and_scores_are_written(
    npz: Path, tmp_path: Path, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the last moment before a file appears: nothing half is ever there under its name."""
    folder, run = tmp_path / "killed", tmp_path / "run"
    for name, content in undisturbed["staged"].items():
        if name.startswith(
            "cache/"
        ):  # all is trained already, only policy and scores are to be written
            path = folder / name.removeprefix("cache/")
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
    arguments, begun = command(npz, run), {"recipe.json", "made_with.jsonl"}
    for target, there in (
        ("policy.json", {*begun, "policy.safetensors"}),
        ("evaluation.json", {*begun, "policy.safetensors", "policy.json"}),
    ):
        process = start([target, *arguments], folder, KILL_AT)
        process.communicate(timeout=600)
        assert process.returncode == -signal.SIGKILL
        assert {path.name for path in run.rglob("*.*") if not path.name.startswith(".")} == there
    monkeypatch.setenv("DDICE_CACHE", str(folder))
    assert main(arguments) == 0
    expected = {
        name: content
        for name, content in undisturbed["staged"].items()
        if not name.startswith("metrics/")
    }
    assert_same(outcome(run, folder), expected)
    assert load_policy(run / "policy").act(np.zeros(3)).shape == (1,)


@pytest.mark.gate
def test_ctrl_c(
    npz: Path, tmp_path: Path, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "stopped"
    arguments = command(npz, tmp_path / "run")
    arguments[arguments.index("--checkpoint-every") + 1] = "20"
    process = start(arguments, folder)
    _, errors = stop_when(process, half_done("backend", folder), signal.SIGINT)
    assert process.returncode == 130
    assert "Traceback" not in errors
    (checkpoint,) = folder.glob("backend/*/checkpoint.safetensors")
    step = load_tensors(checkpoint, loop.CHECKPOINT)[1]["step"]
    assert (
        errors.splitlines()[-1]
        == f"backend stopped at step {step}: saved in {checkpoint}; run the same command "
        "again to go on"
    )
    monkeypatch.setenv("DDICE_CACHE", str(folder))
    assert main(arguments) == 0
    assert_same(outcome(tmp_path / "run", folder), undisturbed["staged"])


def test_a_run_killed_between_its_last_step_and_its_state(
    npz: Path, tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last checkpoint is complete; the rest is made from it, in another run folder too."""
    recipe = small.recipe(npz, evaluation={"episodes": 0})

    def fail(*_: Any) -> None:
        raise RuntimeError("the machine is gone")

    with monkeypatch.context() as patch:
        patch.setattr("ddice.runs.training.save_tensors", fail)
        with pytest.raises(RuntimeError, match="gone"):
            go(recipe, tmp_path / "a")
    go(recipe, tmp_path / "b")
    assert trained == ["prior", "prior", "backend", "extractor"]
    assert not list(cache.cache_folder().rglob("checkpoint*"))
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "other"))
    go(recipe, tmp_path / "c")
    for part in ("policy", "metrics"):
        assert small.digests(tmp_path / "c" / part) == small.digests(tmp_path / "b" / part)


# -- a metric that is no number


def test_a_diverging_run_stops_with_its_cause_and_keeps_the_last_good_checkpoint(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ddice.dice_backends.semi_gradient import PairBackend

    recipe = small.recipe(npz, evaluation={"episodes": 0}, steps={"backend": 50})
    update = PairBackend.update

    def poisoned(self: Any, batch: Any, *, step: int) -> Any:
        metrics = update(self, batch, step=step)
        return {**metrics, "q_loss": torch.tensor(torch.nan)} if step >= 33 else metrics

    with monkeypatch.context() as patch:
        patch.setattr(PairBackend, "update", poisoned)
        with pytest.raises(loop.TrainingDiverged) as caught:
            go(recipe, tmp_path / "run", checkpoint_every=10)
    (checkpoint,) = cache.cache_folder().glob("backend/*/checkpoint.safetensors")
    assert str(caught.value).startswith(
        f"backend: q_loss is nan at step 39; the last good checkpoint is {checkpoint}. Usual "
        "causes: a learning rate"
    )
    tensors, meta = load_tensors(checkpoint, loop.CHECKPOINT)
    assert meta["step"] == 30
    assert all(bool(torch.isfinite(value).all()) for value in tensors.values())
    assert [line["stage"] for line in records(tmp_path / "run" / "metrics" / "prior.jsonl")] == [
        "prior"
    ]
    assert not (tmp_path / "run" / "policy").exists()
    go(recipe, tmp_path / "run")  # and it goes on from there
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "other"))
    go(recipe, tmp_path / "again")
    assert small.digests(tmp_path / "run" / "policy") == small.digests(
        tmp_path / "again" / "policy"
    )


def test_a_huge_learning_rate_diverges(npz: Path) -> None:
    recipe = small.recipe(npz, prior={"optimizer": {"learning_rate": 1e30}})
    with pytest.raises(
        loop.TrainingDiverged,
        match=(
            r"^prior: loss is (nan|inf) at step 11; no checkpoint was written yet\. Usual "
            r"causes: "
        ),
    ):
        go(recipe)


# -- run folders


def test_a_run_folder(npz: Path, tmp_path: Path, trained: list[str]) -> None:
    recipe = small.recipe(npz)
    result, scores = go(recipe, tmp_path / "run")
    assert trained == ["prior", "backend", "extractor"]
    assert (
        type(recipe).model_validate_json((tmp_path / "run" / "recipe.json").read_text()) == recipe
    )
    assert isinstance(scores, Evaluation)
    assert (
        Evaluation.model_validate_json((tmp_path / "run" / "evaluation.json").read_text()) == scores
    )
    assert scores.lengths == (200, 200)
    for stage, steps in recipe.steps.model_dump().items():
        assert [
            (line["stage"], line["step"])
            for line in records(tmp_path / "run" / "metrics" / f"{stage}.jsonl")
        ] == [(stage, steps)]
    observation = np.array([1.0, 0.0, 0.0])
    expected = result.policy.act(observation, seed=1)
    np.testing.assert_array_equal(
        load_policy(tmp_path / "run" / "policy", device="cpu").act(observation, seed=1), expected
    )
    again = go(recipe, tmp_path / "run")
    assert trained == ["prior", "backend", "extractor"]
    assert again[1].returns == scores.returns
    assert (np.array(again[0].policy.act(observation, seed=1)) == expected).all()


def test_the_notes_of_a_policy_say_where_it_comes_from(npz: Path) -> None:
    result, scores = go(small.recipe(npz, evaluation={"episodes": 0}))
    assert scores is None
    data = small.recipe(npz).data.load()
    assert result.policy.config.notes == {
        "backend": "piecewise_f",
        "ratio": "action",
        "discount": "0.99",
        "extractor": "guide_then_select",
        "data": data.spec.fingerprint,
        **note_of(small.recipe(npz, evaluation={"episodes": 0})),
    }


def test_another_recipe_is_refused_and_what_differs_is_named(npz: Path, tmp_path: Path) -> None:
    claim_run(tmp_path, small.recipe(npz))
    claim_run(tmp_path, small.recipe(npz))
    with pytest.raises(
        ValueError,
        match=(
            r"holds another recipe, which differs in backend\.temperature, "
            r"evaluation\.episodes, seed: give another"
        ),
    ):
        check_run(
            tmp_path,
            small.recipe(npz, backend={"temperature": 2}, seed=1, evaluation={"episodes": 3}),
        )
    with pytest.raises(ValueError, match=r"differs in backend\.[a-z_., ]*backend\.kind"):
        check_run(tmp_path, small.recipe(npz, backend={"kind": "optidice"}))
    (tmp_path / "recipe.json").write_text('{"seed"')
    with pytest.raises(ValueError, match=r"recipe\.json is not valid JSON .* delete the folder"):
        claim_run(tmp_path, small.recipe(npz))


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", '"text"'])
def test_a_recipe_that_is_no_recipe_is_refused_in_words(
    content: str, npz: Path, tmp_path: Path
) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ValueError, match=r"recipe\.json|another recipe"):
        claim_run(tmp_path, small.recipe(npz))


def test_a_recipe_that_was_changed_is_not_taken_for_that_of_the_policy(
    npz: Path, tmp_path: Path
) -> None:
    recipe = small.recipe(npz)
    claim_run(tmp_path, recipe)
    notes = note_of(recipe)
    assert read_recipe(tmp_path, notes) == recipe
    text = (tmp_path / FILE).read_text()
    (tmp_path / FILE).write_text(json.dumps(json.loads(text), indent=1, sort_keys=True))
    assert read_recipe(tmp_path, notes) == recipe  # the same, written otherwise
    (tmp_path / FILE).write_text(text.replace('"fraction": 1.0', '"fraction": 0.5'))
    with pytest.raises(ValueError, match="is not the recipe that the policy was made by"):
        read_recipe(tmp_path, notes)
    assert read_recipe(tmp_path, {}).data.fraction == 0.5  # a policy of before notes none
    (tmp_path / FILE).unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no recipe\.json"):
        read_recipe(tmp_path, notes)


def test_differences() -> None:
    assert differences({"a": 1, "b": {"c": [1], "d": 2}}, {"a": 1, "b": {"c": [2], "e": 2}}) == [
        "b.c",
        "b.d",
        "b.e",
    ]
    assert differences({"a": None}, {"a": {"b": 1}}) == ["a"]
    assert differences({"a": 1}, {"a": 1}) == []


def refused(npz: Path, tmp_path: Path, trained: list[str], message: str, **changes: Any) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        go(small.recipe(npz, **changes), tmp_path / "run")
    assert trained == []
    assert not (tmp_path / "run").exists(), "a mistake must not claim the folder"


def test_what_cannot_work_is_refused_before_any_training(
    npz: Path, tmp_path: Path, trained: list[str]
) -> None:
    refused(npz, tmp_path, trained, "nothere.npz does not exist", data={"source": "nothere.npz"})
    given = {"kind": "given", "source": "small:ratio"}
    refused(
        npz,
        tmp_path,
        trained,
        r"candidates = 2 needs a Q to choose among them and there is none",
        backend=given,
    )
    refused(
        npz,
        tmp_path,
        trained,
        r"data record no environment to play in: give its id as data\.env",
        data={"env": None, "action_bounds": "data"},
    )
    refused(
        npz, tmp_path, trained, r"expected a device such as \"auto\", .* got 'gpu'", device="gpu"
    )
    refused(
        npz,
        tmp_path,
        trained,
        r'"return_range" .*',
        backend={"rewards": ["standardize", "return_range"]},
    )
    refused(
        npz,
        tmp_path,
        trained,
        r"source = .* cannot be imported",
        backend={"kind": "given", "source": "small:nothing"},
    )


def test_checkpoints_every_zero_steps_make_no_sense(npz: Path) -> None:
    with pytest.raises(ValueError, match="expected checkpoint_every of at least 1 step, got 0"):
        go(small.recipe(npz), checkpoint_every=0)


def test_without_episodes_no_environment_is_needed(npz: Path, trained: list[str]) -> None:
    result, scores = go(
        small.recipe(npz, data={"env": None, "action_bounds": "data"}, evaluation={"episodes": 0})
    )
    assert scores is None
    assert result.policy.act(np.zeros(3)).shape == (1,)


# -- what is found again


def test_a_second_extractor_trains_neither_prior_nor_backend(npz: Path, trained: list[str]) -> None:
    go(small.recipe(npz, evaluation={"episodes": 0}))
    assert trained == ["prior", "backend", "extractor"]
    before = {
        path: path.stat().st_mtime_ns for path in cache.cache_folder().rglob("state.safetensors")
    }
    said: list[str] = []
    for name, extractor in small.EXTRACTORS.items():
        go(
            small.recipe(npz, extractor={"kind": name, **extractor}, evaluation={"episodes": 0}),
            say=said.append,
        )
    assert trained == [
        "prior",
        "backend",
        "extractor",
        "extractor",
        "extractor",
        "extractor",
    ]  # the first one again, three others, and one without training
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert [line.split(":")[0] for line in said].count(
        "prior"
    ) == 3  # a Gaussian and an actor need none
    assert all("found trained (" in line for line in said)


CHANGES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": ({}, []),
    "episodes": (
        {"evaluation": {"episodes": 1, "seed": 3, "parallel": 1, "deterministic": True}},
        [],
    ),
    "acting": (
        {
            "extractor": {
                "candidates": 1,
                "guidance_scale": 2.0,
                "solver": {"evaluations": 1},
                "selection": {"rule": "minimum"},
            }
        },
        [],
    ),
    "batch size of joint training": ({"batch_size": 8}, []),
    "environment": (
        {"data": {"env": None, "action_bounds": [-2, 2]}, "evaluation": {"episodes": 0}},
        [],
    ),
    "temperature": ({"backend": {"temperature": 2.0}}, ["backend", "extractor"]),
    "backend's kind": (
        {"backend": {"kind": "f_dice", **small.BACKENDS["f_dice"]}},
        ["backend", "extractor"],
    ),
    "backend's rewards": ({"backend": {"rewards": ["standardize"]}}, ["backend", "extractor"]),
    "guidance": ({"extractor": {"guidance": {"log_floor": -5.0}}}, ["extractor"]),
    "steps of the prior": ({"steps": {"prior": 13}}, ["prior", "extractor"]),
    "steps of the backend": ({"steps": {"backend": 13}}, ["backend", "extractor"]),
    "steps of the extractor": ({"steps": {"extractor": 13}}, ["extractor"]),
    "prior": ({"prior": {"batch_size": 8}}, ["prior", "extractor"]),
    "seed": ({"seed": 1}, ["prior", "backend", "extractor"]),
    "fraction": ({"data": {"fraction": 0.5}}, ["prior", "backend", "extractor"]),
    "held-out episodes": ({"data": {"validation": 0.25}}, ["prior", "backend", "extractor"]),
    "bounds": (
        {"data": {"env": None, "action_bounds": [-3, 3]}, "evaluation": {"episodes": 0}},
        ["prior", "backend", "extractor"],
    ),
    "schedule": ({"schedule": "joint"}, ["joint"]),
}


@pytest.mark.parametrize(("changes", "anew"), CHANGES.values(), ids=CHANGES.keys())
def test_what_a_change_trains_anew(
    changes: dict[str, Any], anew: list[str], npz: Path, trained: list[str]
) -> None:
    quick = {"steps": {"prior": 2, "backend": 2, "extractor": 2}, "evaluation": {"episodes": 0}}
    go(small.recipe(npz, **quick))
    del trained[:]
    go(
        small.recipe(
            npz, **small.merge(quick, small.merge(changes, {"evaluation": {"episodes": 0}}))
        )
    )
    assert trained == anew


def test_the_content_of_the_data_counts_not_its_name(
    npz: Path, tmp_path: Path, trained: list[str]
) -> None:
    recipe = {"evaluation": {"episodes": 0}, "steps": {"prior": 2, "backend": 2, "extractor": 2}}
    go(small.recipe(npz, **recipe))
    del trained[:]
    copy = tmp_path / "copy.npz"
    shutil.copyfile(npz, copy)
    go(small.recipe(copy, **recipe))
    assert trained == []
    arrays = small.arrays()
    arrays["rewards"][3] += 1
    np.savez(copy, **arrays)
    go(small.recipe(copy, **recipe))
    assert trained == ["backend", "extractor"]  # the prior does not see rewards
    del trained[:]
    arrays["actions"][3] /= 2
    np.savez(copy, **arrays)
    go(small.recipe(copy, **recipe))
    assert trained == ["prior", "backend", "extractor"]


@pytest.mark.parametrize("schedule", ["staged", "joint"])
def test_given_ratios_are_found_by_their_content(
    schedule: str, npz: Path, tmp_path: Path, trained: list[str]
) -> None:
    path = tmp_path / "ratios.npy"
    backend = {"kind": "given", "source": str(path), "q": "small:q"}
    recipe = small.recipe(npz, backend=backend, evaluation={"episodes": 0}, schedule=schedule)
    last = "extractor" if schedule == "staged" else "joint"
    rows = small.EPISODES * small.LENGTH
    np.save(path, np.ones(rows))
    first, _ = go(recipe)
    assert trained == ["prior", last]
    np.save(path, np.ones(rows))
    go(recipe)
    assert trained == ["prior", last]
    np.save(path, np.linspace(0, 1, rows))
    second, _ = go(recipe)
    assert trained == ["prior", last, last]
    assert any(
        not torch.equal(a, b)
        for a, b in zip(first.extractor.parameters(), second.extractor.parameters(), strict=True)
    )


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "another kind"])
@pytest.mark.parametrize("name", ["state", "checkpoint"])
def test_a_damaged_file_in_the_cache_is_said_and_made_again(
    name: str, damage: str, npz: Path, tmp_path: Path, trained: list[str]
) -> None:
    recipe = small.recipe(npz, evaluation={"episodes": 0})
    go(recipe, tmp_path / "a")
    (state,) = cache.cache_folder().glob("backend/*/state.safetensors")
    good = state.read_bytes()
    path = state.with_name(f"{name}.safetensors")
    state.unlink()
    content = {"truncated": good[:-7], "empty": b"", "foreign": b"PK\x03\x04 not safetensors"}.get(
        damage
    )
    if content is None:
        save_tensors(path, "policy", {"x": torch.ones(1)}, {})
    else:
        path.write_bytes(content)
    del trained[:]
    said: list[str] = []
    go(recipe, tmp_path / "b", say=said.append)
    assert trained == ["backend"]
    assert state.read_bytes() == good
    (line,) = [line for line in said if "damaged" in line]
    assert line.startswith("backend: made again, because what the cache holds is damaged: ")
    assert str(path) in line
    assert small.digests(tmp_path / "a" / "policy") == small.digests(tmp_path / "b" / "policy")


def test_metrics_come_along_with_what_is_found(npz: Path, tmp_path: Path) -> None:
    recipe = small.recipe(npz, evaluation={"episodes": 0})
    go(recipe, tmp_path / "a")
    go(recipe, tmp_path / "b")
    assert len(small.digests(tmp_path / "a" / "metrics")) == 3
    assert small.digests(tmp_path / "a" / "metrics") == small.digests(tmp_path / "b" / "metrics")


@pytest.mark.parametrize("folder", ["a", None], ids=["in a folder", "without one"])
def test_who_goes_on_in_another_run_folder_has_the_whole_history(
    folder: str | None, npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ddice.dice_backends.semi_gradient import PairBackend

    recipe = small.recipe(npz, evaluation={"episodes": 0}, steps={"backend": 250})
    update = PairBackend.update

    def failing(self: Any, batch: Any, *, step: int) -> Any:
        if step == 225:
            raise RuntimeError("the machine is gone")
        return update(self, batch, step=step)

    with monkeypatch.context() as patch:
        patch.setattr(PairBackend, "update", failing)
        with pytest.raises(RuntimeError, match="gone"):
            go(recipe, None if folder is None else tmp_path / folder, checkpoint_every=10)
    go(recipe, tmp_path / "b", checkpoint_every=10)
    found = (tmp_path / "b" / "metrics" / "backend.jsonl").read_bytes()
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "other"))
    go(recipe, tmp_path / "c")
    assert found == (tmp_path / "c" / "metrics" / "backend.jsonl").read_bytes()
    steps = {line["step"] for line in records(tmp_path / "b" / "metrics" / "backend.jsonl")}
    assert steps == {100, 200, 250}


def test_metrics_replace_a_link_in_the_cache_and_what_it_leads_to_stays(
    npz: Path, tmp_path: Path, trained: list[str]
) -> None:
    recipe = small.recipe(npz, evaluation={"episodes": 0})
    go(recipe, tmp_path / "a")
    (state,) = cache.cache_folder().glob("backend/*/state.safetensors")
    kept = state.with_name("metrics.jsonl")
    foreign = tmp_path / "foreign"
    foreign.write_text("a letter\n")
    state.unlink()
    kept.unlink()
    kept.symlink_to(foreign)
    del trained[:]
    go(recipe, tmp_path / "b")
    assert trained == ["backend"]
    assert foreign.read_text() == "a letter\n"
    assert not kept.is_symlink()
    assert kept.read_bytes() == (tmp_path / "b" / "metrics" / "backend.jsonl").read_bytes()


def test_no_steps_train_nothing(npz: Path, trained: list[str]) -> None:
    recipe = small.recipe(
        npz, steps={"prior": 0, "backend": 0, "extractor": 0}, evaluation={"episodes": 0}
    )
    with pytest.warns(UserWarning, match="stays as it was initialised") as said:
        result, _ = go(recipe)
    named = [str(one.message).partition(":")[0] for one in said if "steps." in str(one.message)]
    assert set(named) == {f"steps.{stage} = 0" for stage in ("prior", "backend", "extractor")}
    assert trained == []
    assert [path.name for path in cache.cache_folder().glob("*")] == ["data"]
    assert result.prior.step == result.backend.step == 0


# -- joint training is the loop of the public example


def test_joint_training_is_the_ordinary_loop(npz: Path) -> None:
    recipe = small.recipe(npz, schedule="joint", evaluation={"episodes": 0}, batch_size=16)
    result, _ = go(recipe)
    data = recipe.data.load()
    prior = recipe.prior.fit(data, steps=12, seed=0, device="cpu", progress=False)
    backend = recipe.backend.build(data.spec, seed=0)
    extractor = recipe.extractor.build(data.spec, seed=0, prior=prior)
    backend.until(10)
    extractor.until(10)
    for step in range(10):
        batch = data.sample(16, seed=0, step=step)
        backend.update(batch, step=step)
        extractor.update(batch, log_ratio=backend.log_ratio(batch), step=step)
    for mine, theirs in ((result.backend, backend), (result.extractor, extractor)):
        other = theirs.state()
        assert mine.state().keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in mine.state().items())


def test_staged_training_is_three_fits(npz: Path) -> None:
    recipe = small.recipe(npz, evaluation={"episodes": 0})
    result, _ = go(recipe)
    data = recipe.data.load()
    prior = recipe.prior.fit(data, steps=12, seed=0, device="cpu", progress=False)
    backend = recipe.backend.fit(data, steps=10, seed=0, device="cpu", progress=False)
    policy = recipe.extractor.fit(
        data, prior=prior, backend=backend, steps=8, seed=0, device="cpu", progress=False
    )
    observations = data.observations[:7].numpy()
    np.testing.assert_array_equal(
        policy.act(observations, seed=3), result.policy.act(observations, seed=3)
    )


# -- predictions of the cost


def test_a_forecast_counts_parameters_and_keeps_nothing(npz: Path) -> None:
    recipe = small.recipe(npz, steps={"prior": 1_000, "backend": 2_000, "extractor": 3_000})
    data = recipe.data.load()
    found = {stage.stage: stage for stage in forecast(recipe, data, steps=2)}
    # features 3, action 1, four features of time, width 8: one affine map, a block of norm and two
    # maps, norm and output
    assert found["prior"].parameters == (8 * 8 + 8) + (16 + 72 + 72) + (16 + 8 + 1)
    # V: 3 -> 8 (norm) -> 1; two critics 4 -> 8 (norm) -> 1
    assert found["backend"].parameters == (32 + 16 + 9) + 2 * (40 + 16 + 9)
    assert found["extractor"].parameters == (3 + 1 + 4 + 1) * 8 + 9
    assert [stage.steps for stage in found.values()] == [1_000, 2_000, 3_000]
    assert all(stage.seconds > 0 for stage in found.values())
    assert [path.name for path in cache.cache_folder().glob("*")] == ["data"]


def test_a_forecast_of_joint_training_is_that_of_both_parts_together(npz: Path) -> None:
    data = small.recipe(npz).data.load()
    found = forecast(small.recipe(npz, schedule="joint"), data, steps=1)
    assert [(stage.stage, stage.steps) for stage in found] == [("prior", 12), ("joint", 10)]
    _, backend, extractor = forecast(small.recipe(npz), data, steps=1)
    assert found[1].parameters == backend.parameters + extractor.parameters


def test_a_forecast_leaves_the_warm_start_out(npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steps do less work than those that follow."""
    recipe = small.recipe(npz, backend={"warm_start_steps": 7})
    data = recipe.data.load()
    backend = type(recipe.backend.build(data.spec))
    seen: list[int] = []
    update = backend.update

    def spy(self: Any, batch: Any, *, step: int) -> Any:
        seen.append(step)
        return update(self, batch, step=step)

    monkeypatch.setattr(backend, "update", spy)
    forecast(recipe, data, steps=2)
    assert seen == [7, 8, 9, 10, 11]


def test_the_behaviour_policy_needs_no_backend(npz: Path, trained: list[str]) -> None:
    recipe = small.recipe(
        npz, extractor={"kind": "select_only", "candidates": 1, "solver": small.SOLVER}
    )
    result = Training(recipe, recipe.data.load(), progress=False, say=quiet).train(
        with_backend=False
    )
    assert trained == ["prior"]
    assert result.backend is None
    assert result.policy.q is None
