"""Every Python snippet of the README runs, in order, in one namespace: with a small dataset, few
steps and few episodes in place of the long ones.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import FULL, blocks, commands, namespace_of, run_block

from ddice.cli import main
from ddice.runs.comparison import Results, render_table

README = (Path(__file__).parents[1] / "README.md").read_text()
SNIPPETS = blocks(README, "python")
COMMANDS = commands(README)


@pytest.mark.gate
def test_snippets_run(small_maze: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the snippets leave behind is what the README says: actions of the stated shapes,
    weights that reach the policy, a policy on disk.
    """
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    rows = 200
    given = {
        "np": np,
        "observation": np.zeros(4, dtype=np.float32),
        "observations": rng.normal(size=(rows, 4)),
        "actions": rng.uniform(-1, 1, size=(rows, 2)),
        "rewards": rng.normal(size=rows),
        "terminations": np.arange(rows) % 20 == 19,
        "truncations": np.zeros(rows, dtype=bool),
        "advantages": rng.normal(size=rows),
        "critic": lambda observations, actions: -actions.square().sum(-1),
    }
    namespace = namespace_of("page_readme", monkeypatch, given)
    assert len(SNIPPETS) == 5
    for snippet in SNIPPETS:
        if "prior=prior" in snippet and "prior = " not in snippet:
            namespace["prior"] = (
                namespace["ddice"].DiffusionPrior().fit(namespace["data"], steps=5, progress=False)
            )
        run_block(snippet, "README.md", namespace, {FULL: small_maze})
    assert namespace["action"].shape == (2,)
    assert (tmp_path / "runs/mine/policy/policy.safetensors").exists()
    batch = namespace["data"].full()
    expected = np.exp(np.clip(namespace["advantages"] / 3, None, 4.6))[batch.rows]
    np.testing.assert_allclose(namespace["backend"].ratio(batch), expected, rtol=1e-5)
    torch.testing.assert_close(
        namespace["policy"].q(batch.observations, batch.actions), -batch.actions.square().sum(-1)
    )


@pytest.mark.gate
def test_commands_run(
    small_maze: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The commands of the README succeed with small budgets, and the comparison begins with the
    behaviour policy.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "cache"))
    tiny = "--steps.prior 2 --steps.backend 2 --steps.extractor 2 --evaluation.episodes 1"
    small_recipe = f"--data.source {small_maze} {tiny}"
    recipe_of_compare = " ".join(
        word if not word.startswith("--") else f"--recipe.{word[2:]}"
        for word in small_recipe.split()
    )
    quiet = "--no-progress"
    extra = {
        "data": "",
        "train": f"{quiet} {small_recipe}",
        "status": "",
        "evaluate": quiet,
        "compare": f"{quiet} {recipe_of_compare}",
    }
    assert [shlex.split(command)[1] for command in COMMANDS] == list(extra)
    for command in COMMANDS:
        words = shlex.split(
            command.replace("--episodes 100", "--episodes 1")
            .replace("0,1,2", "0")
            .replace(FULL, small_maze)
        )
        assert main([*words[1:], *extra[words[1]].split()]) == 0, capsys.readouterr().err
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 1 + 4
    assert "behaviour policy" in rows[2]


def test_the_table_is_the_committed_one() -> None:
    """Every row of the README's results stands in the committed table, and the table follows
    from the committed results.
    """
    folder = Path(__file__).parents[1] / "benchmarks/results/pointmaze-umaze"
    rows = [line for line in README.splitlines() if line.startswith("|")]
    committed = (folder / "table.md").read_text()
    assert rows == [line for line in committed.splitlines() if line.startswith("|")]
    assert render_table(Results(folder / "results.jsonl").rows) == committed.strip()
