"""Mutants: the package with one line of its maths broken on purpose. Each must turn a named test
red, or the tests do not guard that line.

    python tests/mutants.py            # all of them, some minutes
    python tests/mutants.py r1 floor   # those whose names contain one of these words

A mutation that no longer fits the text is an error, not a pass: it must be written anew for the new
text.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
# The first argument is where the package must have been imported from; the rest are pytest's.
RUN = (
    "import sys, ddice, pytest; assert ddice.__file__.startswith(sys.argv[1]), ddice.__file__; "
    "sys.exit(pytest.main(sys.argv[2:]))"
)
TESTS_FAILED = 1  # pytest's exit code; 2 to 5 mean that nothing was tested


@dataclass(frozen=True)
class Mutant:
    """`old`, which stands exactly once in `file`, becomes `new`; `test` must fail."""

    name: str
    file: str
    old: str
    new: str
    test: str


FIDELITY = "tests/test_fidelity.py::"
GUIDED = "tests/test_guidance.py::test_guidance_on_noise_and_on_the_clean_action_are_the_same"
CRITIC, PRIOR = f"{FIDELITY}test_the_losses_of_the_critic", f"{FIDELITY}test_the_loss_of_the_prior"
IGL = f"{FIDELITY}test_the_loss_of_the_guidance"
SAMPLING, STEP = (
    f"{FIDELITY}test_a_sampling_call_and_the_selection",
    f"{FIDELITY}test_one_step_of_the_critic",
)
ENGINES = "tests/test_engines.py"
PAIR = "dice_backends/semi_gradient.py"
MUTANTS = (
    Mutant(
        "the sign of the guidance",
        "guidance.py",
        "denoiser(x, t) - schedule.sigma(t)",
        "denoiser(x, t) + schedule.sigma(t)",
        GUIDED,
    ),
    Mutant(
        "guidance without sigma",
        "guidance.py",
        "schedule.sigma(t) * scale * gradient",
        "scale * gradient",
        GUIDED,
    ),
    Mutant(
        "guidance without its scale",
        "guidance.py",
        "schedule.sigma(t) * scale * gradient",
        "schedule.sigma(t) * gradient",
        GUIDED,
    ),
    Mutant(
        "the sign of g",
        "guidance.py",
        "return tangent + g",
        "return tangent - g",
        "tests/test_guidance.py::test_the_loss_by_hand",
    ),
    Mutant(
        "the exponent turned round",
        "guidance.py",
        "exponent = log_ratio - g",
        "exponent = g - log_ratio",
        "tests/test_guidance.py::test_the_loss_by_hand",
    ),
    Mutant(
        "the floor dropped",
        "guidance.py",
        "torch.clamp(relative, min=floor, max=cap)",
        "torch.clamp(relative, max=torch.inf if cap is None else cap)",
        "tests/test_guidance.py::test_floor_and_cap_are_counted",
    ),
    Mutant(
        "the cap dropped",
        "guidance.py",
        "torch.clamp(relative, min=floor, max=cap)",
        "torch.clamp(relative, min=floor)",
        IGL,
    ),
    Mutant(
        "no tangent",
        "guidance.py",
        "torch.relu(exponent - exponent_cut)",
        "0",
        "tests/test_guidance.py::test_past_the_cut_the_exponential_is_its_tangent",
    ),
    Mutant(
        "the least g for the largest",
        "extractors/guide_then_select.py",
        "flatten(-2).amax(-1), max",
        "flatten(-2).amin(-1), max",
        IGL,
    ),
    Mutant(
        "a time per noise",
        "extractors/guide_then_select.py",
        "step, (rows, 1), self",
        "step, (rows, config.noises_per_action), self",
        IGL,
    ),
    Mutant(
        "the discount cut",
        "dice_backends/base.py",
        "self.config.discount * torch.where(batch",
        "torch.where(batch",
        CRITIC,
    ),
    Mutant(
        "bootstrapping past the end",
        "dice_backends/base.py",
        "torch.where(batch.terminations, 0.0, next_values)",
        "next_values",
        CRITIC,
    ),
    Mutant(
        "truncation taken for termination",
        "data/arrays.py",
        'ends = source.terminations | flags(columns["truncations"], count, "truncations")',
        'ends = source.terminations = source.terminations | flags(columns["truncations"], '
        'count, "truncations")',
        "tests/test_data.py::test_two_episodes_row_by_row",
    ),
    Mutant(
        "the branches of f swapped",
        "dice_backends/divergences/kl_below.py",
        "torch.where(ratio < 1, torch.xlogy",
        "torch.where(ratio > 1, torch.xlogy",
        "tests/test_divergences.py",
    ),
    Mutant(
        "the curvature of the piecewise f",
        "dice_backends/divergences/kl_below.py",
        "return 2.0",
        "return 1.0",
        f"{FIDELITY}test_the_ratios",
    ),
    Mutant(
        "value_weight dropped",
        PAIR,
        "+ value_weight * values",
        "+ values",
        "tests/test_backends.py::test_value_loss_by_hand",
    ),
    Mutant(
        "the temperature under V dropped", PAIR, "values / temperature[..., None]", "values", CRITIC
    ),
    Mutant(
        "the larger of two critics", PAIR, "squeeze(-1).amin(-2)", "squeeze(-1).amax(-2)", CRITIC
    ),
    Mutant(
        "the live critic for the averaged one", PAIR, "q = self.target(", "q = self.critic(", CRITIC
    ),
    Mutant(
        "the average the wrong way",
        PAIR,
        "average(self.target, self.critic,",
        "average(self.critic, self.target,",
        STEP,
    ),
    Mutant(
        "the rate of the average",
        "part.py",
        "list(source.parameters()), rate)",
        "list(source.parameters()), 1 - rate)",
        STEP,
    ),
    Mutant("ascent", "part.py", "loss.sum().backward()", "(-loss.sum()).backward()", STEP),
    Mutant(
        "r1 = 1/2",
        "solvers.py",
        "r1 = (inner.log_snr - start.log_snr) / (end.log_snr - start.log_snr)",
        "r1 = 0.5",
        SAMPLING,
    ),
    Mutant(
        "an inner point that is skipped",
        "solvers.py",
        "_advance(x, clean, start, inner), inner, clip)",
        "x, inner, clip)",
        SAMPLING,
    ),
    Mutant(
        "backward extrapolation",
        "solvers.py",
        "target = clean + (clean - previous)",
        "target = clean - (clean - previous)",
        "tests/test_solvers.py::test_multi_step_written_out",
    ),
    Mutant(
        "the last step at second order",
        "solvers.py",
        "(self.evaluations - 1) // 2",
        "self.evaluations // 2",
        "tests/test_solvers.py::test_an_even_count_ends_with_two_first_order_steps",
    ),
    Mutant(
        "twice the noise rate",
        "schedule.py",
        "-0.25 * (self.beta_max",
        "-0.5 * (self.beta_max",
        PRIOR,
    ),
    Mutant(
        "alpha for sigma",
        "schedule.py",
        "self.sigma(t)[..., None] * noise",
        "self.alpha(t)[..., None] * noise",
        PRIOR,
    ),
    Mutant(
        "the mean over action dimensions",
        "prior.py",
        "(predicted - noise).square().sum(-1)",
        "(predicted - noise).square().mean(-1)",
        PRIOR,
    ),
    Mutant(
        "the best member for their mean",
        "samplers/selection.py",
        "else q.mean(0)",
        "else q.amax(0)",
        SAMPLING,
    ),
    Mutant(
        "clipped before scoring",
        "policy.py",
        '== "before_scoring")',
        '== "after_scoring")',
        SAMPLING,
    ),
    Mutant(
        "guidance of the other sign",
        "engines/decision.py",
        "-config.guidance_scale * schedule",
        "config.guidance_scale * schedule",
        ENGINES,
    ),
    Mutant(
        "actions not clipped",
        "solvers.py",
        "clean.clamp(-1, 1) if clip else clean",
        "clean",
        "tests/test_solvers.py::test_clipping_by_hand",
    ),
    Mutant(
        "actions of engines not clipped",
        "engines/program.py",
        " - x * factor).clamp_(-1, 1)",
        " - x * factor)",
        ENGINES,
    ),
    Mutant("a time too early", "engines/eager.py", "times[i if", "times[max(i - 1, 0) if", ENGINES),
    Mutant(
        "a row that is forgotten",
        "engines/program.py",
        "return y if row is None or bias is not None else y + row",
        "return y",
        ENGINES,
    ),
    Mutant(
        "rows of other states",
        "engines/eager.py",
        "other[..., None, :]",
        "other[..., :1, None, :]",
        ENGINES,
    ),
    Mutant(
        "a packed product without its row",
        "engines/products.py",
        "(x, weight, plus, activation",
        "(x, weight, None, activation",
        ENGINES,
    ),
    Mutant(
        "a value let go of too early",
        "engines/eager.py",
        "| {program.output: len(steps)}",
        "| {}",
        ENGINES,
    ),
    Mutant(
        "a reward of another scale",
        "dice_backends/rewards.py",
        "1000 / (summary",
        "100 / (summary",
        CRITIC,
    ),
    Mutant(
        "an unprojected backward gradient",
        "dice_backends/orthogonal.py",
        "(b - share.reshape",
        "(b - 0 * share.reshape",
        "tests/test_orthogonal.py::test_projection_by_hand",
    ),
    Mutant(
        "lambda dropped from the dual",
        "dice_backends/optidice.py",
        "weighted_mean(divergence.conjugate(y), weights) + lam",
        "weighted_mean(divergence.conjugate(y), weights)",
        "tests/test_backends.py::test_dual_loss_by_hand",
    ),
    Mutant(
        "half the slope of silu",
        "networks.py",
        "gate * (1 + x * (1 - gate))",
        "gate * (1 + x * gate)",
        "tests/test_guidance.py::test_the_gradient_equals_that_of_autograd",
    ),
    Mutant(
        "numbers that forget the step",
        "randomness.py",
        "derived_seed(seed, stream, step)",
        "derived_seed(seed, stream)",
        "tests/test_randomness.py::test_each_of_the_three_names_matters",
    ),
    Mutant(
        "an oracle without its overlap",
        "testing/gaussian.py",
        "gain.sum(-1) / 2",
        "gain.sum(-1)",
        "tests/test_testing_guidance.py::test_guidance_equals_quadrature",
    ),
)
FAST = (
    "the sign of the guidance",
    "the discount cut",
    "r1 = 1/2",
    "the floor dropped",
)  # in the ordinary run of the tests


def mutated(mutant: Mutant) -> str:
    """The text of the file with the mutation. Raises ValueError when `old` does not stand in it
    exactly once.
    """
    text = (ROOT / "ddice" / mutant.file).read_text()
    if (found := text.count(mutant.old)) != 1:
        where = f"mutant {mutant.name!r}: expected {mutant.old!r} once in ddice/{mutant.file}"
        raise ValueError(f"{where}, found it {found} times: write it for the new text")
    return text.replace(mutant.old, mutant.new)


def run(folder: Path, test: str) -> subprocess.CompletedProcess[str]:
    """The named test, with the package of `folder`, in a new process."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    options = [
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=",
        "--rootdir",
        str(folder),
        test,
    ]
    command = [sys.executable, "-c", RUN, str(folder), *options]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def check(mutant: Mutant, folder: Path) -> None:
    """Raise AssertionError unless the test turns red because of the mutant. `folder` must be
    empty.
    """
    text = mutated(mutant)
    for name in ("ddice", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    if (ROOT / "benchmarks").exists():
        shutil.copytree(
            ROOT / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("__pycache__")
        )
    (folder / "ddice" / mutant.file).write_text(text)
    result = run(folder, mutant.test)
    assert result.returncode != 0, (
        f"mutant {mutant.name!r} survives {mutant.test}: nothing guards {mutant.old!r} in "
        f"ddice/{mutant.file}"
    )
    output = f"{result.stdout}{result.stderr}"
    assert result.returncode == TESTS_FAILED, (
        f"mutant {mutant.name!r}: {mutant.test} did not run (exit {result.returncode}):\n{output}"
    )
    assert " failed" in result.stdout, (
        f"mutant {mutant.name!r}: {mutant.test} broke instead of failing:\n{result.stdout}"
    )


def main(words: list[str]) -> int:
    chosen = [m for m in MUTANTS if not words or any(word in m.name for word in words)]
    survivors = 0
    for mutant in chosen:
        with tempfile.TemporaryDirectory() as folder:
            try:
                check(mutant, Path(folder))
                print(f"killed    {mutant.name}", flush=True)
            except (AssertionError, ValueError) as error:
                survivors += 1
                print(f"SURVIVES  {mutant.name}: {error}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants turn their test red")
    return 1 if survivors or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
