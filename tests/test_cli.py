"""The command line as a new user meets it: what works, what it prints, and mistakes in one line
instead of a traceback.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from test_options import leaves

import ddice
from ddice.cli import main
from ddice.core import cache
from ddice.core.plugins import members
from ddice.dice_backends import AnyBackend
from ddice.policies.evaluation import Evaluation, PairedEvaluation
from ddice.runs.comparison import Comparison, Results
from ddice.runs.recipe import Recipe
from ddice.testing import catalogue

pytestmark = pytest.mark.filterwarnings("ignore:.*rows dropped")


@pytest.fixture
def plots() -> None:
    """For the tests that look at plots: drawing them takes longer than all the rest."""


@pytest.fixture(autouse=True)
def _own_folders(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "plots" not in request.fixturenames:
        for name in ("train.plot_metrics", "compare.plot_metrics", "compare.plot_scores"):
            monkeypatch.setattr(f"ddice.cli.{name}", lambda *_: True)
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_npz(tmp_path_factory.mktemp("data") / "small.npz")


@pytest.fixture(scope="module")
def maze(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Minari folder with a tiny PointMaze umaze, ddice/pointmaze-umaze-2k-v0."""
    pytest.importorskip("gymnasium_robotics")
    from ddice.collection import make_pointmaze

    folder = tmp_path_factory.mktemp("minari")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        assert make_pointmaze("umaze", steps=2000, progress=False) == MAZE
    return folder


MAZE = "ddice/pointmaze-umaze-2k-v0"
Run = Any


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process -> (exit status, output, errors)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as error:  # argparse's own
            status = int(error.code or 0)
        output = capsys.readouterr()
        return status, output.out, output.err

    return call


@pytest.fixture
def done(npz: Path, tmp_path: Path, finished: Path) -> Path:
    """A run folder "a" in the working directory, trained with `options(npz)`."""
    shutil.copytree(finished / "cache", tmp_path / "cache")
    return Path(shutil.copytree(finished / "a", "a"))


@pytest.fixture(scope="module")
def finished(npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDICE_CACHE", str(folder / "cache"))
        patch.setattr("ddice.cli.train.plot_metrics", lambda *_: True)
        assert main(["train", *options(npz), "--run", str(folder / "a")]) == 0
    return folder


def options(npz: Path, **changes: Any) -> list[str]:
    fields = {**small.FIELDS, "data": {"source": str(npz), "env": small.SHORT}}
    return [*small.flags(npz, small.merge(fields, changes)), "--no-progress"]


def grid_options(npz: Path, source: str | None = None, **changes: Any) -> list[str]:
    data = {"source": str(npz), "env": small.SHORT} if source is None else {"source": source}
    fields = small.merge(
        {
            "data": data,
            "prior": small.FIELDS["prior"],
            "steps": {"prior": 2, "backend": 2, "extractor": 2},
            "evaluation": {"episodes": 1},
        },
        changes,
    )
    return [*small.flags(npz, fields, "recipe."), "--no-progress"]


# -- what works


def test_train_then_evaluate(npz: Path, tmp_path: Path, run: Run, plots: None) -> None:
    status, output, errors = run("train", *options(npz), "--run", "runs/a")
    assert status == 0, errors
    lines = small.without_alarms(output.splitlines())
    assert lines[0] == "policy: runs/a/policy"
    assert lines[1] == f"{small.SHORT}: 2 episodes, seed 0"
    assert lines[2].startswith("  score   -")
    assert "raw returns: no reference scores are known" in output
    assert {path.name for path in (tmp_path / "runs" / "a").iterdir() if path.name[0] != "."} == {
        "recipe.json", "metrics", "metrics.png", "policy", "evaluation.json", "made_with.jsonl",
    }  # fmt: skip
    trained = Evaluation.model_validate_json(
        (tmp_path / "runs" / "a" / "evaluation.json").read_text()
    )

    for path in ("runs/a", "runs/a/policy"):
        status, output, errors = run(
            "evaluate", path, "--episodes", 2, "--no-progress", "--json", "scores.json"
        )
        assert status == 0, errors
        assert output.splitlines()[:2] == lines[1:3]
        again = Evaluation.model_validate_json((tmp_path / "scores.json").read_text())
        assert (again.returns, again.label) == (trained.returns, trained.label)
    status, output, _ = run(
        "evaluate",
        "runs/a",
        "--episodes",
        3,
        "--seed",
        1,
        "--deterministic",
        "--parallel",
        2,
        "--no-progress",
    )
    assert output.startswith(f"{small.SHORT}: 3 episodes, seed 1, deterministic\n")
    status, output, _ = run(
        "evaluate", "runs/a", "--episodes", 1, "--env", "Pendulum-v1", "--no-progress"
    )
    assert output.startswith("Pendulum-v1: 1 episodes")
    assert "length 200.0" in output
    pair = ("runs/a", "runs/a/policy", "--episodes", 2, "--no-progress", "--json", "pair.json")
    status, output, errors = run("evaluate", *pair)
    assert status == 0, errors
    assert (
        "first - second, 2 pairs with the same starts: 0.00 [0.00, 0.00], better in 50 %" in output
    )
    both = PairedEvaluation.model_validate_json((tmp_path / "pair.json").read_text())
    assert both.first.returns == both.second.returns == trained.returns
    for engine in ("eager", "auto"):
        status, output, errors = run(
            "evaluate",
            "runs/a",
            "--episodes",
            2,
            "--engine",
            engine,
            "--no-progress",
            "--json",
            "scores.json",
        )
        assert status == 0, errors
        again = Evaluation.model_validate_json((tmp_path / "scores.json").read_text())
        assert again.returns == pytest.approx(trained.returns, rel=1e-4)
    status, output, errors = run(
        "evaluate",
        "runs/a",
        "--episodes",
        1,
        "--few-steps",
        "--guidance-scale",
        0,
        "--candidates",
        1,
        "--no-progress",
    )
    assert status == 0, errors
    status, output, errors = run("evaluate", "runs/a", "--candidates", -1, "--no-progress")
    assert (status, "candidates" in errors) == (1, True)
    status, _, errors = run(
        "evaluate", "runs/a", "--engine", "graph", "--device", "cpu", "--no-progress"
    )
    assert (status, "engine 'graph' needs a CUDA device" in errors) == (1, True)


def test_the_same_command_finds_everything_again(npz: Path, done: Path, run: Run) -> None:
    before, scores = (
        small.digests(done / "policy"),
        json.loads((done / "evaluation.json").read_text()),
    )
    status, output, errors = run("train", *options(npz), "--run", "a")
    assert status == 0, errors
    lines = small.without_alarms(output.splitlines())
    assert [line.split(" (")[0] for line in lines[:3]] == [
        f"{stage}: found trained" for stage in ("prior", "backend", "extractor")
    ]
    assert lines[3] == "policy: a/policy"
    assert small.digests(done / "policy") == before
    assert json.loads((done / "evaluation.json").read_text())["returns"] == scores["returns"]


def test_the_recipe_that_ran_is_a_config_file(
    npz: Path, done: Path, tmp_path: Path, run: Run
) -> None:
    status, output, errors = run(
        "train", "--config", "a/recipe.json", "--run", "b", "--no-progress"
    )
    assert status == 0, errors
    assert "extractor: found trained" in output
    assert (tmp_path / "a" / "recipe.json").read_text() == (
        tmp_path / "b" / "recipe.json"
    ).read_text()
    # flags win over the file, the file over the preset
    status, _, errors = run(
        "train",
        "--preset",
        "official",
        "--config",
        "a/recipe.json",
        "--seed",
        5,
        "--run",
        "c",
        "--no-progress",
    )
    assert status == 0, errors
    recipe = Recipe.model_validate_json((tmp_path / "c" / "recipe.json").read_text())
    assert recipe == Recipe.model_validate_json(
        (tmp_path / "a" / "recipe.json").read_text()
    ).model_copy(update={"seed": 5})


def test_without_a_run_folder_it_says_that_the_policy_is_gone(
    npz: Path, tmp_path: Path, run: Run
) -> None:
    status, output, _ = run("train", *options(npz))
    assert status == 0
    said = small.without_alarms(output.splitlines())
    assert said[0].startswith("the policy was not kept: give --run for that")
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}


def test_train_without_evaluation(npz: Path, tmp_path: Path, run: Run) -> None:
    fields = options(npz, data={"env": None, "action_bounds": "data"}, evaluation={"episodes": 0})
    status, output, errors = run("train", *fields, "--run", "a")
    assert status == 0, errors
    assert small.without_alarms(output.splitlines()) == ["policy: a/policy"]
    assert not (tmp_path / "a" / "evaluation.json").exists()


def test_a_dry_run_trains_and_writes_nothing(npz: Path, tmp_path: Path, run: Run) -> None:
    status, output, errors = run("train", *options(npz), "--run", "a", "--dry-run")
    assert status == 0, errors
    lines = output.splitlines()
    assert [line.split()[0] for line in lines] == [
        "stage",
        "prior",
        "backend",
        "extractor",
        "memory:",
        "time:",
    ]
    assert lines[2].split()[:3] == ["backend", "187", "10"]
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*")] == [
        "cache/data"
    ]  # nothing but the dataset as read


def test_a_dry_run_of_the_published_settings_predicts_much(npz: Path, run: Run) -> None:
    fields = [
        "--data.source",
        npz,
        "--data.env",
        small.SHORT,
        "--prior.batch_size",
        64,
        "--extractor.guidance.batch_size",
        64,
    ]
    status, output, errors = run("train", "--preset", "official", *fields, "--dry-run")
    assert status == 0, errors
    stages = {line.split()[0]: line.split() for line in output.splitlines()[1:3]}
    steps = {name: words[2] for name, words in stages.items()}
    assert steps == {"prior": "600,000", "joint": "1,000,000"}
    assert all(line[3:] and line[4] in ("h", "min") for line in stages.values())


def test_progress_bars_go_to_the_error_stream(npz: Path, run: Run) -> None:
    fields = [
        option for option in options(npz, evaluation={"episodes": 0}) if option != "--no-progress"
    ]
    _, output, errors = run("train", *fields)
    for stage, steps in (("prior", 12), ("backend", 10), ("extractor", 8)):
        assert f"{stage}: 100%" in errors
        assert f"{steps}/{steps}" in errors
    assert "%" not in output


def test_compare(
    npz: Path, tmp_path: Path, run: Run, plots: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = ["--backends", "piecewise_f,optidice", "--extractors.gaussian_bc.batch_size", 16]
    status, output, errors = run("compare", *grid_options(npz), *grid, "--run", "g")
    assert status == 0, errors
    table = output[output.index("| backend") :].splitlines()
    assert [row.split("|")[1:3] for row in table[2:5]] == [
        ["  ", " behaviour policy "],
        [" piecewise_f ", " gaussian_bc "],
        [" optidice ", " gaussian_bc "],
    ]
    assert table[-1] == "results, plots and policies: g"
    assert (tmp_path / "g" / "table.md").read_text().splitlines() == table[:-2]
    assert (tmp_path / "g" / "scores.png").stat().st_size > 5000
    assert len(list((tmp_path / "g").glob("seed-*/*/metrics.png"))) == 3
    assert len(Results(tmp_path / "g" / "results.jsonl").rows) == 3
    # again: the same table at once, and nothing drawn again; and as a config file of another
    # comparison
    drawn = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "g").glob("seed-*/*/metrics.png")
    }
    status, again, _ = run("compare", *grid_options(npz), *grid, "--run", "g")
    assert again == output[output.index("\n| backend") :]
    assert all(path.stat().st_mtime_ns == then for path, then in drawn.items())
    monkeypatch.setattr("ddice.cli.compare.plot_metrics", lambda *_: True)
    status, output, errors = run(
        "compare", "--config", "g/comparison.json", "--seeds", "0,1", "--run", "h", "--no-progress"
    )
    assert status == 0, errors
    assert [row.seed for row in Results(tmp_path / "h" / "results.jsonl").rows] == [0, 1] * 3


def whole_grid() -> list[str]:
    """Every backend with every extractor, tiny."""
    backends = {name: {"kind": name, **fields} for name, fields in small.BACKENDS.items()}
    extractors = {name: {"kind": name, **fields} for name, fields in small.EXTRACTORS.items()}
    assert set(backends) == {cls.model_fields["kind"].default for cls in members(AnyBackend)}
    # Given ratios name functions of the catalogue.
    trust = ["--trust", catalogue.__name__]
    return ["--backends", json.dumps(backends), "--extractors", json.dumps(extractors), *trust]


def assert_whole_grid(folder: Path, episode: int) -> None:
    rows = Results(folder / "results.jsonl").rows
    pairs = [(backend, extractor) for backend in small.BACKENDS for extractor in small.EXTRACTORS]
    assert [(row.backend, row.extractor) for row in rows] == [(None, "behaviour policy"), *pairs]
    assert all(
        row.evaluation.lengths == (episode,) and np.isfinite(row.evaluation.returns).all()
        for row in rows
    )


@pytest.mark.gate
def test_every_backend_with_every_extractor_on_arrays(npz: Path, tmp_path: Path, run: Run) -> None:
    status, output, errors = run("compare", *grid_options(npz), *whole_grid(), "--run", "g")
    assert status == 0, errors
    assert_whole_grid(tmp_path / "g", 20)
    assert output.count("\n| ") == 1 + 1 + len(small.BACKENDS) * len(small.EXTRACTORS)


@pytest.mark.slow
def test_every_backend_with_every_extractor_on_pointmaze(
    npz: Path, maze: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(maze))
    status, _, errors = run("compare", *grid_options(npz, MAZE), *whole_grid(), "--run", "g")
    assert status == 0, errors
    assert_whole_grid(tmp_path / "g", 300)


def test_train_on_pointmaze(
    npz: Path, maze: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(maze))
    fields = small.flags(
        npz, {**small.FIELDS, "data": {"source": MAZE}, "evaluation": {"episodes": 1}}
    )
    status, output, errors = run("train", *fields, "--no-progress", "--run", "a")
    assert status == 0, errors
    assert "PointMaze_UMaze-v3: 1 episodes" in output
    assert "normalised by bundled table: mean return of 50 episodes" in output
    assert "success" in output
    policy = ddice.load_policy(tmp_path / "a" / "policy")
    assert policy.spec.view.kind == "fixed"


def test_data(npz: Path, tmp_path: Path, run: Run) -> None:
    pytest.importorskip("gymnasium_robotics")
    status, output, errors = run("data", "make", "pointmaze-umaze", "--steps", 600, "--no-progress")
    assert status == 0, errors
    name = "ddice/pointmaze-umaze-600-v0"
    assert (
        output
        == f"{name} is ready: ddice.load_dataset({name!r}), or ddice train --data.source {name}\n"
    )
    status, again, errors = run("data", "make", "pointmaze-umaze", "--steps", 600, "--no-progress")
    assert (status, again) == (0, output)
    status, described, errors = run("data", "describe", "ddice/pointmaze-umaze-600-v0")
    assert status == 0, errors
    assert "600" in described
    status, observed, _ = run(
        "data", "describe", "ddice/pointmaze-umaze-600-v0", "--goal", "observed"
    )
    assert observed != described
    warnings.simplefilter("always")
    status, described, errors = run("data", "describe", npz, "--action-bounds", "data")
    assert status == 0, errors
    assert "112" in described  # 120 rows, less the last ones of eight cut episodes
    assert "rows dropped" in errors


def test_cache(npz: Path, tmp_path: Path, run: Run) -> None:
    assert run("cache", "list")[:2] == (0, f"{tmp_path / 'cache'}\n")
    run("train", *options(npz, evaluation={"episodes": 0}))
    status, output, _ = run("cache", "list")
    data, *lines, folder = output.splitlines()
    assert status == 0
    assert data.split()[2:5] == ["data", "112", "rows"]
    assert folder == str(tmp_path / "cache")
    assert [line.split()[2:4] for line in lines] == [
        ["prior", "diffusion"],
        ["backend", "piecewise_f"],
        ["extractor", "guide_then_select"],
    ]
    assert all("trained" in line and "seed 0" in line and str(npz) in line for line in lines)
    status, output, _ = run("cache", "clear")
    assert status == 0
    assert output.startswith("freed 0.")
    assert cache.entries() == []


def test_a_whole_process(npz: Path, tmp_path: Path) -> None:
    """The installed command and `python -m ddice.cli`: status and streams. Whole trainings by
    processes are in test_training.
    """
    program = Path(sys.executable).with_name("ddice")
    command = [str(program)] if program.exists() else [sys.executable, "-m", "ddice.cli"]
    done = subprocess.run(
        [*command, "data", "describe", npz, "--action-bounds", "data"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "112" in done.stdout
    assert [line[:9] for line in done.stderr.splitlines()] == ["warning: "]
    done = subprocess.run(
        [sys.executable, "-m", "ddice.cli", "train", "--sed", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: unknown option 'sed': did you mean 'seed'?")


# -- help


@pytest.mark.parametrize(("command", "model"), [("train", Recipe), ("compare", Comparison)])
def test_help_mentions_every_field(command: str, model: Any, run: Run) -> None:
    status, output, _ = run(command, "--help-all")
    assert status == 0
    words = set(output.split())
    assert [name for name, _, _ in leaves(model) if f"--{name}" not in words] == []


@pytest.mark.parametrize(
    ("command", "fields", "of"),
    [
        ("train", 13, ("--backend.temperature  float|str = 1.0  strength", Recipe)),
        ("compare", 10, ("--seeds  [int,...] = [0]", Comparison)),
    ],
)
def test_help_fits_one_screen_and_names_the_rest(
    command: str, fields: int, of: tuple[str, Any], run: Run
) -> None:
    status, output, _ = run(command, "--help")
    assert status == 0
    lines, (line, model) = output.splitlines(), of
    assert len(lines) <= 40
    assert sum(each.startswith("--") for each in lines) == fields
    assert sum(each.startswith(line) for each in lines) == 1
    assert f"{len({name for name, _, _ in leaves(model)})} in all; --help-all lists them" in output


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("evaluate", ["path", "--episodes", "--env", "--deterministic", "--json"]),
        ("data", ["make", "describe"]),
        ("data make", ["--steps", "--generation-seed", "pointmaze-umaze"]),
        ("data describe", ["--source", "--goal"]),
        ("cache", ["list", "clear", "DDICE_CACHE"]),
        (
            "train",
            ["--preset", "--config", "--run", "--dry-run", "--no-progress", "--checkpoint-every"],
        ),
    ],
)
def test_help_of_the_commands(command: str, words: list[str], run: Run) -> None:
    status, output, _ = run(*command.split(), "--help")
    assert status == 0
    assert all(word in output for word in words)


def test_help_of_the_whole(run: Run) -> None:
    for arguments in ([], ["--help"]):
        status, output, _ = run(*arguments)
        assert status == 0
        for command in ("train", "evaluate", "compare", "data", "cache"):
            assert f"\n    {command} " in output
        assert "examples:" in output


def test_the_examples_of_the_help_are_valid(run: Run) -> None:
    """Each is parsed into a recipe or a comparison, up to the dataset that is not there."""
    _, output, _ = run("--help")
    examples = [
        line.split()[1:]
        for line in output[output.index("examples:") :].replace("\\\n", "").splitlines()[1:]
        if line.strip()
    ]
    assert len(examples) >= 5
    for example in examples:
        if example[0] in ("train", "compare"):
            status, _, errors = run(*example)
            assert (status, errors.splitlines()[-1][:47]) == (
                1,
                "error: dataset 'ddice/pointmaze-umaze-v0' not f",
            ), errors


# -- mistakes: exit status 1 (2 from argparse), one line, how to mend it


def mistake(run: Run, *arguments: object) -> str:
    """The one line that explains it."""
    status, output, errors = run(*arguments)
    lines = [line for line in errors.splitlines() if not line.startswith("warning: ")]
    assert status == 1, (output, errors)
    assert output == ""
    assert len(lines) == 1, errors
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "--sed", "3"], "error: unknown option 'sed': did you mean 'seed'?"),
        (
            ["train", "--presett", "official"],
            "error: unknown option 'presett': did you mean 'preset'?",
        ),
        (
            ["train", "--backend.temprature", "3"],
            "error: backend: unknown field of PiecewiseF 'temprature': did you mean 'temperature'?",
        ),
        (
            ["train", "--backend.kind", "optidise"],
            "error: backend: unknown kind 'optidise': did you mean 'optidice'?",
        ),
        (
            ["train", "--backend", "optidice"],
            "error: backend: expected fields, got 'optidice': a kind is chosen with --backend.kind",
        ),
        (["train", "--seed", "x"], "error: seed: Input should be a valid integer"),
        (["train", "--seed"], "error: option --seed needs a value"),
        (["train", "seed", "3"], "error: expected an option such as --seed 1"),
        (["train", "--config", "nothere.json"], "error: --config nothere.json does not exist"),
        (
            ["compare", "--run", "r", "--data.source", "x"],
            "error: unknown option 'data': it is a field of the recipe that is compared, "
            "--recipe.da",
        ),
        (
            ["compare", "--run", "r", "--backend", "x"],
            "error: unknown option 'backend': it is a field of the recipe that is compared, "
            "--recipe.bac",
        ),
        (
            ["compare", "--run", "r", "--sede", "x"],
            "error: unknown option 'sede': did you mean 'seeds'?",
        ),
        (
            ["compare", "--run", "r", "--backends", "f_dice,optidise"],
            "error: backends.optidise: unknown kind 'optidise': did you mean 'optidice'?",
        ),
        (
            ["evaluate", "r", "--episode", "3"],
            "error: unknown option 'episode': did you mean 'episodes'?",
        ),
        (["evaluate", "nothere"], "error: nothere holds no policy"),
        (
            ["data", "make", "pointmaze-huge"],
            "error: expected one of pointmaze-umaze, pointmaze-medium, pointmaze-large, got "
            "'pointmaze-huge'",
        ),
        (["data", "make"], "error: expected one of pointmaze-umaze"),
        (
            ["data", "make", "pointmaze-umaze", "--step", "3"],
            "error: unknown option 'step': did you mean 'steps'?",
        ),
        (["data", "make", "pointmaze-umaze", "--steps", "0"], "error: expected steps >= 1"),
        (
            ["data", "describe", "x.npz", "--gaol", "fixed"],
            "error: unknown field of DataSource 'gaol': did you mean 'goal'?",
        ),
        (["data", "describe", "x.npz"], "error: x.npz does not exist"),
        (["data", "describe", "nothere"], "error: expected a Minari id such as"),
        (["cache", "list", "all"], "error: unexpected argument 'all'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_explained(
    arguments: list[str], expected: str, run: Run, tmp_path: Path
) -> None:
    assert mistake(run, *arguments).startswith(expected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["trian"],
        ["cache", "lst"],
        ["compare"],
        ["train", "--preset", "ofical"],
        ["evaluate"],
        ["data"],
    ],
)
def test_what_argparse_refuses(arguments: list[str], run: Run) -> None:
    status, output, errors = run(*arguments)
    assert (status, output) == (2, "")
    assert errors.startswith("usage: ddice")
    assert "Traceback" not in errors


def test_a_missing_dataset_says_at_once_how_to_make_it(tmp_path: Path, run: Run) -> None:
    for command in (
        ["train", "--run", "a"],
        ["compare", "--run", "a"],
        ["data", "describe"],
        ["train", "--dry-run"],
    ):
        line = mistake(run, *command)
        assert line.startswith("error: dataset 'ddice/pointmaze-umaze-v0' not found in ")
        assert "`ddice data make pointmaze-umaze`" in line
    assert "run `minari download D4RL/door/human-v2`" in mistake(
        run, "train", "--data.source", "D4RL/door/human-v2"
    )
    assert not (tmp_path / "a").exists()


def test_several_candidates_without_q(npz: Path, tmp_path: Path, run: Run) -> None:
    fields = {
        **small.FIELDS,
        "data": {"source": str(npz), "env": small.SHORT},
        "backend": {"kind": "given", "source": "small:ratio"},
    }
    line = mistake(run, "train", *small.flags(npz, fields), "--run", "a", "--trust", "small")
    assert line.startswith(
        "error: candidates = 2 needs a Q to choose among them and there is none: give "
        "one (of a backend that has it, or a callable of your own), or use candidates=1"
    )
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*")] == [
        "cache/data"
    ]  # nothing but the dataset as read
    status, _, errors = run(
        "train",
        *small.flags(npz, fields),
        "--extractor.candidates",
        1,
        "--no-progress",
        "--run",
        "a",
        "--trust",
        "small",
    )
    assert status == 0, errors


def test_other_mistakes_with_data(npz: Path, tmp_path: Path, run: Run) -> None:
    fields = small.arrays()
    np.savez(
        tmp_path / "discrete.npz", **{**fields, "actions": (fields["actions"] > 0).astype(np.int64)}
    )
    assert "not supported yet" in mistake(
        run, "train", "--data.source", "discrete.npz", "--evaluation.episodes", 0
    )
    (tmp_path / "broken.npz").write_bytes(npz.read_bytes()[:500])
    assert "cannot be read as a .npz" in mistake(run, "train", "--data.source", "broken.npz")
    np.savez(
        tmp_path / "nan.npz",
        **{
            **fields,
            "rewards": np.where(np.arange(len(fields["rewards"])) == 7, np.nan, fields["rewards"]),
        },
    )
    assert "row 7" in mistake(run, "train", *options(tmp_path / "nan.npz"))
    alone = options(npz, data={"env": None, "action_bounds": "data"})
    assert "the data record no environment to play in" in mistake(
        run, "train", *alone, "--run", "a"
    )
    assert "registered Gymnasium id, got 'Pendulumm-v1'" in mistake(
        run, "train", *options(npz, data={"env": "Pendulumm-v1"})
    )
    assert "do not fit" in mistake(
        run, "train", *options(npz, data={"env": "MountainCarContinuous-v0"})
    )
    assert 'expected a device such as "auto"' in mistake(
        run, "train", *options(npz), "--device", "gpu"
    )
    assert "expected checkpoint_every of at least 1 step, got 0" in mistake(
        run, "train", *options(npz), "--checkpoint-every", 0
    )
    assert not (tmp_path / "a").exists()


def test_another_recipe_in_the_run_folder(npz: Path, done: Path, run: Run) -> None:
    line = mistake(run, "train", *options(npz), "--run", "a", "--backend.temperature", 3)
    assert (
        line
        == "error: a holds another recipe, which differs in backend.temperature: give another --run"
    )


NAMED = ("--preset", "default")  # or a line before the error tells of the preset that fits


def test_an_unwritable_run_folder(npz: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "file").write_text("")
    assert mistake(run, "train", *NAMED, *options(npz), "--run", "file").startswith(
        "error: cannot write into the run folder file ("
    )
    assert mistake(run, "train", *NAMED, *options(npz), "--run", "file/deeper").startswith(
        "error: cannot write into the run folder file/deeper ("
    )


def test_a_diverging_run(npz: Path, run: Run) -> None:
    rate = ("--prior.optimizer.learning_rate", "1e30")
    line = mistake(run, "train", *NAMED, *options(npz), *rate)
    assert line.startswith(
        "error: prior: loss is nan at step 11; no checkpoint was written yet. Usual causes: a "
        "learning rate that is too high"
    )


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        (
            "policy.safetensors",
            lambda good: good[:-9],
            "policy.safetensors cannot be read as a policy",
        ),
        ("policy.safetensors", lambda good: b"", "policy.safetensors cannot be read as a policy"),
    ],
)
def test_a_damaged_policy(file: str, content: Any, expected: str, done: Path, run: Run) -> None:
    path = done / "policy" / file
    path.write_bytes(content(path.read_bytes()))
    assert expected in mistake(run, "evaluate", "a", "--no-progress")


def test_ctrl_c_outside_of_training(npz: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ddice.cli.train.train", interrupt)
    assert run("train", *options(npz)) == (130, "", "\nstopped\n")


def test_warnings_are_one_line(npz: Path, run: Run) -> None:
    warnings.simplefilter("always")
    _, _, errors = run("data", "describe", npz, "--action_bounds", "data")
    (line,) = errors.splitlines()
    assert line.startswith(f"warning: {npz}: 8 of 120 rows dropped")
