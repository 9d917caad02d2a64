"""What runs when: a file of a stranger runs no code by being loaded, described or played, until
the caller allows the module that it names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import small

import ddice
from ddice import load_dataset
from ddice.cli import main
from ddice.core.config import import_function
from ddice.data.allowed import require_allowed
from ddice.data.environment import make_env, record_of
from ddice.data.quality import check
from ddice.data.spec import EnvRecord
from ddice.data.trial import require_playable
from ddice.dice_backends import FDice, GivenRatio
from ddice.extractors import GaussianBC
from ddice.pictures import make_film, read_maze, record
from ddice.policies.policy import Policy
from ddice.runs.recipe import DataSource, Recipe
from ddice.runs.training import train

pytestmark = pytest.mark.filterwarnings("ignore:.*rows dropped")
NOT_ALLOWED = r"which Gymnasium's registry does not hold: nothing was imported.*trust_env=\['{}'\]"
BOUNDS = (-1.0, 1.0)
GOAL_KEYS = ("achieved_goal", "desired_goal", "observation")
OWN = '''"""An environment of somebody else, which leaves a mark when it is imported."""
from pathlib import Path
from gymnasium.envs.classic_control import PendulumEnv
from gymnasium import Wrapper

Path(__file__).with_name("ran").touch()


class Env(PendulumEnv):
    pass


class Twice(Wrapper):
    pass
'''


def changed(**fields: Any) -> EnvRecord:
    """The record of a short Pendulum with other fields."""
    return EnvRecord(spec=json.dumps({**json.loads(record_of(small.SHORT).spec), **fields}))


def wrapper(entry_point: str, **kwargs: Any) -> dict[str, Any]:
    name = entry_point.partition(":")[2]
    return {"name": name, "entry_point": entry_point, "kwargs": kwargs}


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that is importable and in nobody's registry; the file that shows that it ran."""
    (tmp_path / "foreign_envs.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "foreign_envs", raising=False)
    return tmp_path / "ran"


@pytest.fixture(scope="module")
def policy() -> Policy:
    data = load_dataset(small.arrays(), env=small.SHORT)
    ratios = GivenRatio(source=np.ones(data.spec.source_rows)).fit(data)
    actor = GaussianBC(network=small.NETWORK, batch_size=16)
    return actor.fit(data, backend=ratios, steps=2, seed=0, device="cpu", progress=False)


def recorded(policy: Policy, environment: EnvRecord) -> Policy:
    """The policy as if its data had recorded another environment."""
    spec = policy.spec.model_copy(update={"env": environment})
    return Policy(policy.config, spec, policy.sampler, policy.q)


# -- recorded environments


def test_a_record_that_names_a_command_of_the_system_never_runs_it(
    policy: Policy, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    command = {"command": f"touch {mark}"}
    evil = changed(entry_point="os:system", kwargs=command)
    wrapped = changed(additional_wrappers=[wrapper("os:system", **command)])
    for environment in (evil, wrapped):
        played = recorded(policy, environment)
        for run in (
            lambda played=played: ddice.evaluate(played, episodes=1, progress=False),
            lambda played=played: ddice.evaluate(
                played, played.spec.env, episodes=1, progress=False
            ),
            lambda played=played: record(played, episodes=1, progress=False),
            lambda played=played: require_playable(played.spec),
            lambda environment=environment: read_maze(environment),
            lambda environment=environment: make_film(environment, []),
        ):
            with pytest.raises(ValueError, match="made by os:system, " + NOT_ALLOWED.format("os")):
                run()
    assert not mark.exists()


def test_the_registry_and_the_wrappers_of_gymnasium_are_allowed() -> None:
    own = [
        wrapper("gymnasium.wrappers.stateful_reward:NormalizeReward"),
        wrapper("gymnasium.wrappers.common:TimeLimit", max_episode_steps=3),
    ]
    for environment in (record_of("Pendulum-v1"), changed(additional_wrappers=own)):
        require_allowed(environment, ())
    assert type(make_env(changed(additional_wrappers=own))).__name__ == "TimeLimit"
    # The class counts, not the id under which somebody recorded it.
    require_allowed(changed(id="Renamed-v7"), ())


@pytest.mark.parametrize(
    "entry_point",
    [
        "gymnasium.wrappers.rendering:RecordVideo",  # writes where the record says
        "gymnasium.wrappers.rendering:deepcopy",  # of the module, but no wrapper
        "gymnasium.envs.registration:make",  # imports what it is told to
    ],
)
def test_not_all_of_gymnasium_is_allowed(entry_point: str) -> None:
    for environment in (
        changed(entry_point=entry_point),
        changed(additional_wrappers=[wrapper(entry_point)]),
    ):
        with pytest.raises(ValueError, match=f"made by {entry_point}, "):
            require_allowed(environment, ())
        require_allowed(environment, ("gymnasium",))


def test_environments_that_make_others_by_name_are_not_allowed() -> None:
    gymnasium.register("ddice-test/ByName-v0", entry_point="shimmy.openai:ByName")
    try:
        with pytest.raises(ImportError, match="No module named 'shimmy'"):
            make_env(record_of("ddice-test/ByName-v0"))
        with pytest.raises(ImportError, match="No module named 'shimmy'"):
            require_allowed(record_of("ddice-test/ByName-v0"), ())
    finally:
        del gymnasium.registry["ddice-test/ByName-v0"]


def test_a_record_without_a_name_of_code_is_refused() -> None:
    with pytest.raises(ValueError, match='"module:Class", got None'):
        make_env(changed(entry_point=None))


def test_a_module_is_allowed_by_name(policy: Policy, foreign: Path) -> None:
    environment = changed(
        entry_point="foreign_envs:Env", additional_wrappers=[wrapper("foreign_envs:Twice")]
    )
    played = recorded(policy, environment)
    for trust in ((), ("foreign",), ("foreign_envs_of_others",)):
        with pytest.raises(ValueError, match=NOT_ALLOWED.format("foreign_envs")):
            ddice.evaluate(played, episodes=1, progress=False, trust_env=trust)
    found = check(load_dataset(small.arrays(), env=small.SHORT))
    assert not [one for one in found if one.severity == "error"]
    assert not foreign.exists()
    allowed = ddice.evaluate(played, episodes=2, progress=False, trust_env=["foreign_envs"])
    assert foreign.exists()
    assert allowed.returns == ddice.evaluate(policy, episodes=2, progress=False).returns


def test_what_the_caller_names_or_made_needs_no_leave(policy: Policy, foreign: Path) -> None:
    spec = gymnasium.envs.registration.EnvSpec.from_json(
        changed(entry_point="foreign_envs:Env").spec
    )
    assert ddice.evaluate(policy, spec, episodes=1, progress=False).lengths == (20,)
    assert foreign.exists()


def test_data_check_and_training_say_so_first(foreign: Path, tmp_path: Path) -> None:
    data = load_dataset(small.arrays(), env=small.SHORT)
    data.spec = data.spec.model_copy(update={"env": changed(entry_point="foreign_envs:Env")})
    (found,) = [one for one in check(data) if one.severity == "error"]
    assert found.name == "unusable-environment"
    assert "trust_env=['foreign_envs']" in found.message
    recipe = small.recipe("unused.npz", extractor={"kind": "gaussian_bc"}, steps={"extractor": 1})
    with pytest.raises(ValueError, match=NOT_ALLOWED.format("foreign_envs")):
        train(recipe, data=data, progress=False)
    assert not foreign.exists()
    assert not [one for one in check(data, trust_env=["foreign_envs"]) if one.severity == "error"]
    assert foreign.exists()


# -- datasets


def maze_set(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """A Minari dataset with goals whose recorded environment is made by foreign_envs; `changes`
    of its metadata, None drops a field.
    """
    import minari

    from ddice.data.minari_writer import write_dataset

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
    monkeypatch.setenv("DDICE_CACHE", str(folder / "cache"))
    leaf = np.arange(10, dtype=np.float32).reshape(5, 2)
    foreign = changed(entry_point="foreign_envs:Env").spec
    write_dataset(
        "test/goals-v0",
        [
            {
                "observations": dict.fromkeys(
                    ("achieved_goal", "desired_goal", "observation"), leaf
                ),
                "actions": np.zeros((4, 1), np.float32),
                "rewards": np.arange(4.0),
                "terminations": np.zeros(4, bool),
                "truncations": np.arange(4) == 3,
            }
        ],
        env_spec_json=None,
        eval_env_spec_json=None,
        reference_scores=None,
        description="made by hand",
        algorithm="none",
    )
    path = Path(minari.load_dataset("test/goals-v0").storage.data_path) / "metadata.json"
    fields = {**json.loads(path.read_text()), "env_spec": foreign, **changes}
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))


def test_loading_a_goal_maze_asks_before_it_makes_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, foreign: Path
) -> None:
    maze_set(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=NOT_ALLOWED.format("foreign_envs")) as refused:
        load_dataset("test/goals-v0", action_bounds=BOUNDS)
    assert 'with goal="observed" a recorded environment is not needed' in str(refused.value)
    observed = load_dataset("test/goals-v0", goal="observed", action_bounds=BOUNDS)
    assert len(observed) == 4
    assert not foreign.exists()
    load_dataset("test/goals-v0", action_bounds=BOUNDS, trust_env=["foreign_envs"])
    assert foreign.exists()


def test_minari_asks_no_environment_for_the_spaces_that_a_dataset_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, foreign: Path
) -> None:
    maze_set(tmp_path, monkeypatch, action_space=None)
    with pytest.raises(ValueError, match=NOT_ALLOWED.format("foreign_envs")):
        load_dataset("test/goals-v0", goal="observed")
    assert not foreign.exists()
    assert len(load_dataset("test/goals-v0", goal="observed", trust_env=["foreign_envs"])) == 4
    maze_set(tmp_path / "other", monkeypatch, action_space=None, env_spec=None)
    with pytest.raises(ValueError, match="neither its spaces nor its environment"):
        load_dataset("test/goals-v0", goal="observed")


# -- the command line


def test_the_command_line_allows_modules_too(
    policy: Policy, foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "policy"
    recorded(policy, changed(entry_point="foreign_envs:Env")).save(folder)
    play = ["evaluate", str(folder), "--episodes", "1", "--no-progress", "--device", "cpu"]
    for command in (play, ["picture", str(folder), "--no-progress", "--episodes", "1"]):
        assert main(command) == 1
        assert "or --trust-env foreign_envs" in capsys.readouterr().err
    assert not foreign.exists()
    assert main([*play, "--trust-env", "foreign_envs"]) == 0
    assert foreign.exists()


def test_a_recipe_imports_the_module_of_its_environment_only_when_it_is_allowed(
    foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = foreign.with_name("foreign_envs.py")
    path.write_text(
        OWN + "\nimport gymnasium\ngymnasium.register('Foreign-v0', entry_point=Env, "
        "max_episode_steps=5)\n"
    )
    source = str(small.write_npz(tmp_path / "set.npz"))
    fields = {"source": source, "env": "foreign_envs:Foreign-v0"}
    named = [f"{name}={value}" for name, value in fields.items()]
    train_it = ["train", "--dry-run", *(f"--data.{one}" for one in named)]
    for command in (train_it, ["data", "check", *(f"--{one}" for one in named)]):
        assert main(command) == 1
        said = capsys.readouterr()
        assert "imports the module 'foreign_envs', which is not trusted" in said.err + said.out
    assert not foreign.exists()


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_dry_run_takes_the_leave_too(
    command: str, foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an environment that the data record, and that no registry holds."""
    load = DataSource.load

    def foreign_data(source: DataSource, trust_env: Any = ()) -> Any:
        data = load(source, trust_env)
        data.spec = data.spec.model_copy(update={"env": changed(entry_point="foreign_envs:Env")})
        return data

    monkeypatch.setattr(DataSource, "load", foreign_data)
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "cache"))
    npz = small.write_npz(tmp_path / "set.npz")
    fields = {
        "data": {"source": str(npz), "env": small.ENV},
        **{name: small.FIELDS[name] for name in ("prior", "steps", "evaluation")},
    }
    given = small.flags(npz)
    if command == "compare":
        parts = ["--backends", "piecewise_f", "--extractors", "gaussian_bc"]
        given = [*small.flags(npz, fields, "recipe."), *parts]
    line = [command, "--dry-run", "--run", str(tmp_path / "run"), *given]
    assert main(line) == 1
    assert not foreign.exists()
    assert main([*line, "--trust-env", "foreign_envs"]) == 0
    assert foreign.exists()


# -- what the command line imports

SHADOWS = ("gymnasium", "gymnasium_robotics", "minari", "onnx", "onnxruntime", "torch", "triton")
ROOT = Path(ddice.__file__).parents[1]
SCRIPT = "import sys\nfrom ddice.cli import main\nsys.exit(main())\n"


def process(folder: Path, *arguments: str, start: tuple[str, ...]) -> Any:
    """A command in this working directory."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *start, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("script", [True, False], ids=["script", "module"])
def test_files_of_the_working_directory_are_imported_only_by_name(
    policy: Policy, tmp_path: Path, script: bool
) -> None:
    """The installed script, whose folder comes first on the path, and `python -m ddice.cli`."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ddice").write_text(SCRIPT)
    start = (str(tmp_path / "bin" / "ddice"),) if script else ("-m", "ddice.cli")
    folder = tmp_path / "here"
    folder.mkdir()
    for name in SHADOWS:
        (folder / f"{name}.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()")
    (folder / "own_env.py").write_text(
        "import gymnasium\ngymnasium.register('Beside-v0', max_episode_steps=3, "
        "entry_point='gymnasium.envs.classic_control:PendulumEnv')\n"
    )
    policy.save(folder / "policy")
    play = ["evaluate", "policy", "--env", "own_env:Beside-v0", "--episodes=1", "--no-progress"]
    arguments, answer = (play, "length 3.0") if script else (["export", "policy"], "policy.onnx")
    done = process(folder, *arguments, start=start)
    assert done.returncode == 0, done.stderr
    assert answer in done.stdout
    assert not (folder / "ran").exists()


def test_ctrl_c_is_heard_while_pytorch_is_imported(tmp_path: Path) -> None:
    """The signal comes at the first import of torch, which the command line does not need to
    begin.
    """
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        # As from a terminal: what a shell starts in the background begins with SIGINT ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupts())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-m", "ddice.cli", "presets"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\nstopped\n")


def test_names_of_the_package_are_there_when_they_are_asked_for() -> None:
    code = (
        "import sys, ddice\nassert 'torch' not in sys.modules\n"
        "assert ddice.policies.evaluation.evaluate is ddice.evaluate\n"
        "from ddice import *\nassert load_policy is ddice.load_policy\n"
        "print(hasattr(ddice, 'no_such_name'), hasattr(ddice, '__wrapped__'))"
    )
    assert process(ROOT, "-c", code, start=()).stdout.split() == ["False", "False"]


# -- functions of recipes


@pytest.mark.parametrize(
    ("backend", "field"),
    [
        ({"kind": "f_dice", "divergence": "foreign_envs:Env"}, "function"),
        ({"kind": "given", "source": "foreign_envs:Env"}, "source"),
        ({"kind": "given", "source": "weights.npy", "q": "foreign_envs:Env"}, "q"),
    ],
)
def test_a_recipe_that_is_read_imports_no_function_without_trust(
    backend: dict[str, Any], field: str, foreign: Path
) -> None:
    content = {"backend": backend}
    message = f"{field} = 'foreign_envs:Env' is a function of the module 'foreign_envs', which is"
    with pytest.raises(ValueError, match=message):
        Recipe.read(content)
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate_json(json.dumps(content))
    assert not foreign.exists()
    if backend["kind"] == "given":
        read = Recipe.read(content, trust=["foreign_envs"])
        assert read.model_dump(mode="json")["backend"][field] == "foreign_envs:Env"


def test_a_function_that_is_trusted_or_written_in_python_is_imported(foreign: Path) -> None:
    foreign.with_name("foreign_envs.py").write_text("def square(x):\n    return (x - 1) ** 2\n")
    content = {"backend": {"kind": "f_dice", "divergence": "foreign_envs:square"}}
    read = Recipe.read(content, trust=["foreign_envs"])
    assert read.backend == FDice(divergence="foreign_envs:square")


def test_a_name_without_a_function_imports_nothing(foreign: Path) -> None:
    with pytest.raises(ValueError, match="it names no function"):
        import_function("foreign_envs", "hook")
    assert not foreign.exists()
