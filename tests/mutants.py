"""Mutants: the package with one line of its maths broken on purpose. Each must turn a named test
red, or the tests do not guard that line.

    python tests/mutants.py            # all of them, some minutes
    python tests/mutants.py r1 floor   # those whose names contain one of these words

They are written on the syntax tree: a form, and what becomes of it, inside a function named by its
qualified name (see `rewriting.py`). Mutation tools such as mutmut and cosmic-ray change every
operator of a file blindly and run all tests on each; these are chosen mistakes, each with the one
test that must know the answer. A mutation that no longer fits is an error, not a pass.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rewriting import Rewriting

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ddice"
# The first argument is where the package must have been imported from; the rest are pytest's.
RUN = (
    "import sys, ddice, pytest; assert ddice.__file__.startswith(sys.argv[1]), ddice.__file__; "
    "sys.exit(pytest.main(sys.argv[2:]))"
)
TESTS_FAILED = 1  # pytest's exit code; 2 to 5 mean that nothing was tested


@dataclass(frozen=True)
class Mutant:
    """In the function `where`, the form `find` becomes `become`; `test` must fail."""

    name: str
    where: str
    find: str
    become: str
    test: str


FIDELITY = "tests/test_fidelity.py::"
CRITIC = f"{FIDELITY}test_the_losses_of_the_critic"
PRIOR = f"{FIDELITY}test_the_loss_of_the_prior"
IGL = f"{FIDELITY}test_the_loss_of_the_guidance"
SAMPLING = f"{FIDELITY}test_a_sampling_call_and_the_selection"
STEP = f"{FIDELITY}test_one_step_of_the_critic"
RATIOS = f"{FIDELITY}test_the_ratios"
GUIDANCE = "tests/test_guidance.py::"
GUIDED = f"{GUIDANCE}test_guidance_on_noise_and_on_the_clean_action_are_the_same"
IN_SAMPLE = f"{GUIDANCE}test_the_loss_by_hand"
COUNTED = f"{GUIDANCE}test_floor_and_cap_are_counted"
TANGENT = f"{GUIDANCE}test_past_the_cut_the_exponential_is_its_tangent"
GRADIENT = f"{GUIDANCE}test_the_gradient_equals_that_of_autograd"
EPISODES = "tests/test_data.py::test_two_episodes_row_by_row"
DIVERGENCES = "tests/test_divergences.py"
VALUE = "tests/test_backends.py::test_value_loss_by_hand"
DUAL = "tests/test_backends.py::test_dual_loss_by_hand"
PROJECTION = "tests/test_orthogonal.py::test_projection_by_hand"
SOLVERS = "tests/test_solvers.py::"
MULTI_STEP = f"{SOLVERS}test_multi_step_written_out"
EVEN = f"{SOLVERS}test_an_even_count_ends_with_two_first_order_steps"
CLIPPING = f"{SOLVERS}test_clipping_by_hand"
ENGINES = "tests/test_engines.py"
ACTOR = "tests/test_policy_gradient.py::"
NUMBERS = "tests/test_randomness.py::test_each_of_the_three_names_matters"
ORACLE = "tests/test_testing_guidance.py::test_guidance_equals_quadrature"

MUTANTS = (
    # guidance
    Mutant("the sign of the guidance", "guided", "X - Y", "X + Y", GUIDED),
    Mutant("guidance without sigma", "guided", "S.sigma(T) * X", "X", GUIDED),
    Mutant("guidance without its scale", "guided", "S.sigma(T) * X", "S.sigma(T)", GUIDED),
    Mutant("the sign of g", "in_sample_loss", "return X + Y", "return X - Y", IN_SAMPLE),
    Mutant("the exponent turned round", "in_sample_loss", "E = X - Y", "E = Y - X", IN_SAMPLE),
    Mutant("no tangent", "in_sample_loss", "torch.relu(X)", "0", TANGENT),
    Mutant(
        "the floor dropped",
        "bounded_log_ratio",
        "torch.clamp(X, min=F, max=C)",
        "torch.clamp(X, max=torch.inf if C is None else C)",
        COUNTED,
    ),
    Mutant(
        "the cap dropped",
        "bounded_log_ratio",
        "torch.clamp(X, min=F, max=C)",
        "torch.clamp(X, min=F)",
        IGL,
    ),
    Mutant(
        "the least g for the largest",
        "BatchMaximum.rescaled",
        "X.flatten(-2).amax(-1)",
        "X.flatten(-2).amin(-1)",
        IGL,
    ),
    Mutant(
        "a time per noise",
        "update",
        'rand(S, "guidance/time", T, (R, 1), D)',
        'rand(S, "guidance/time", T, (R, self.config.guidance.noises_per_action), D)',
        IGL,
    ),
    # data
    Mutant(
        "truncation taken for termination",
        "_cut_into_episodes",
        "E = S.terminations | F",
        "E = S.terminations = S.terminations | F",
        EPISODES,
    ),
    # divergences and backends
    Mutant(
        "the branches of f swapped",
        "f",
        "torch.where(R < 1, X, Y)",
        "torch.where(R > 1, X, Y)",
        DIVERGENCES,
    ),
    Mutant(
        "the curvature of the piecewise f",
        "Piecewise.curvature",
        "return 2.0",
        "return 1.0",
        RATIOS,
    ),
    Mutant("the discount cut", "bootstrap", "self.discount * X", "X", CRITIC),
    Mutant(
        "bootstrapping past the end",
        "bootstrap",
        "torch.where(B.terminations, 0.0, V)",
        "V",
        CRITIC,
    ),
    Mutant("value_weight dropped", "value_loss", "W * V / T", "V / T", VALUE),
    Mutant("the temperature under V dropped", "value_loss", "V / T[..., None]", "V", CRITIC),
    Mutant(
        "ratios that add up to what they should average",
        "balancing_values",
        "R.mean(-1) > M",
        "R.sum(-1) > M",
        "tests/test_calibration.py::test_values_of_kl_are_a_logarithm_of_a_mean",
    ),
    Mutant(
        "the larger of two critics",
        "_reduced_q",
        "self.config.reduction.reduce(Q)",
        "Q.amax(-2)",
        CRITIC,
    ),
    Mutant(
        "an upper bound over the members",
        "lower_bound",
        "M - D * S",
        "M + D * S",
        "tests/test_backends.py::test_reductions_by_hand",
    ),
    Mutant(
        "the expectile of the other side",
        "expectile_loss",
        "X.where(U >= 0, Y)",
        "X.where(U < 0, Y)",
        "tests/test_iql.py::test_the_expectile_loss_by_hand",
    ),
    Mutant(
        "a ratio without its cap",
        "IqlBackend.log_ratio_of",
        "X.clamp(max=C)",
        "X",
        "tests/test_iql.py::test_the_cap_by_hand",
    ),
    Mutant(
        "lambda-returns past the end",
        "lambda_returns",
        "torch.where(D, 0.0, V)",
        "V",
        "tests/test_backup.py::test_five_rows_by_hand",
    ),
    Mutant(
        "a cut that forgets what follows",
        "lambda_returns",
        "torch.where(P.remaining > 0, X, Y)",
        "X",
        "tests/test_backup.py::test_five_rows_by_hand",
    ),
    Mutant(
        "refreshed by half",
        "targets",
        "(T - W) % N == 0",
        "(T - W) % (2 * N) == 0",
        "tests/test_backup.py::test_targets_stand_still_between_refreshes",
    ),
    Mutant(
        "the live critic for the averaged one",
        "_reduced_q",
        "self.target(X, Y)",
        "self.critic(X, Y)",
        CRITIC,
    ),
    Mutant(
        "the average the wrong way",
        "update",
        "average(self.target, self.critic, X if C else Y)",
        "average(self.critic, self.target, X if C else Y)",
        STEP,
    ),
    Mutant(
        "the rate of the average",
        "average",
        "torch._foreach_lerp_(X, Y, R)",
        "torch._foreach_lerp_(X, Y, 1 - R)",
        STEP,
    ),
    Mutant(
        "ascent",
        "descend",
        "torch.autograd.backward(L.sum())",
        "torch.autograd.backward(-L.sum())",
        STEP,
    ),
    Mutant("a reward of another scale", "_factor", "1000 / X", "100 / X", CRITIC),
    Mutant(
        "an unprojected backward gradient",
        "orthogonal_gradient",
        "B - S * F",
        "B - 0 * S * F",
        PROJECTION,
    ),
    Mutant("lambda dropped from the dual", "dual_loss", "return X + L", "return X", DUAL),
    # schedule, prior, solvers, networks
    Mutant("twice the noise rate", "log_alpha", "-0.25", "-0.5", PRIOR),
    Mutant(
        "alpha for sigma",
        "NoiseSchedule.noise",
        "self.sigma(T)[..., None] * N",
        "self.alpha(T)[..., None] * N",
        PRIOR,
    ),
    Mutant(
        "the mean over action dimensions",
        "denoising_loss",
        "E.square().sum(-1)",
        "E.square().mean(-1)",
        PRIOR,
    ),
    Mutant(
        "r1 = 1/2",
        "integrate",
        "(I.log_snr - S.log_snr) / (E.log_snr - S.log_snr)",
        "0.5",
        SAMPLING,
    ),
    Mutant(
        "an inner point that is skipped",
        "integrate",
        "_clean(D, _advance(X, C, S, I), I, L)",
        "_clean(D, X, I, L)",
        SAMPLING,
    ),
    Mutant("backward extrapolation", "integrate", "C + (C - P) / R", "C - (C - P) / R", MULTI_STEP),
    Mutant("the last step at second order", "integrate", "(E - 1) // 2", "E // 2", EVEN),
    Mutant("actions not clipped", "_clean", "C.clamp(-1, 1) if F else C", "C", CLIPPING),
    Mutant(
        "half the slope of silu", "silu_backward_torch", "1 + X * (1 - G)", "1 + X * G", GRADIENT
    ),
    Mutant(
        "numbers that forget the step",
        "generator",
        "derived_seed(S, N, T)",
        "derived_seed(S, N)",
        NUMBERS,
    ),
    # acting
    Mutant(
        "the best member for their mean", "MeanSelection.scores", "Q.mean(0)", "Q.amax(0)", SAMPLING
    ),
    Mutant(
        "clipped before scoring",
        "Policy",
        'C.clip_candidates == "before_scoring"',
        'C.clip_candidates == "after_scoring"',
        SAMPLING,
    ),
    # the policy gradient
    Mutant(
        "an actor that descends Q",
        "actor_loss",
        "return X - Y",
        "return X + Y",
        f"{ACTOR}test_the_loss_by_hand",
    ),
    Mutant(
        "a gradient in the divisor",
        "actor_loss",
        "S.detach().abs()",
        "S.abs()",
        f"{ACTOR}test_the_loss_by_hand",
    ),
    Mutant(
        "a gradient in the critic",
        "scores_of",
        "S.detach() + X",
        "S + X",
        f"{ACTOR}test_the_critic_gets_no_gradient",
    ),
    # engines
    Mutant(
        "guidance of the other sign",
        "diffusion_program",
        "-C.guidance_scale * S",
        "C.guidance_scale * S",
        ENGINES,
    ),
    Mutant("actions of engines not clipped", "clean", "within_bounds(X)", "X", ENGINES),
    Mutant("a time too early", "_at", "T[X if C else Y]", "T[max(X - 1, 0) if C else Y]", ENGINES),
    Mutant(
        "a row that is forgotten",
        "evaluate",
        "() if R is None else (R,)",
        "()",
        "tests/test_networks.py::test_affine_by_hand",
    ),
    Mutant("rows of other states", "_add", "X[..., None, :]", "X[..., :1, None, :]", ENGINES),
    Mutant(
        "a packed product without its row",
        "_packed",
        "product(X, W, P, activation, A, B)",
        "product(X, W, None, activation, A, B)",
        ENGINES,
    ),
    Mutant("a value let go of too early", "__init__", "L | {P.output: len(S)}", "L", ENGINES),
    # the oracles themselves
    Mutant("an oracle without its overlap", "tilted", "G.sum(-1) / 2", "G.sum(-1)", ORACLE),
)
FAST = (
    "the sign of the guidance",
    "the discount cut",
    "r1 = 1/2",
    "the floor dropped",
)  # in the ordinary run of the tests


def mutated(mutant: Mutant) -> tuple[Path, str]:
    """The file that changes and its text with the mutation. Raises ValueError, which shows what is
    there, when the mutation does not fit.
    """
    try:
        return Rewriting(mutant.where, mutant.find, mutant.become).text(PACKAGE)
    except ValueError as error:
        raise ValueError(f"mutant {mutant.name!r}: {error}") from None


def run(folder: Path, test: str) -> subprocess.CompletedProcess[str]:
    """The named test, with the package of `folder`, in a new process."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    quiet = ["-x", "-q", "-p", "no:cacheprovider", "-o", "addopts="]
    command = [sys.executable, "-c", RUN, str(folder), *quiet, "--rootdir", str(folder), test]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def check(mutant: Mutant, folder: Path) -> None:
    """Raise AssertionError unless the test turns red because of the mutant. `folder` must be
    empty.
    """
    path, text = mutated(mutant)
    leave = shutil.ignore_patterns("__pycache__")
    for name in ("ddice", "tests", "benchmarks"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, folder / name, ignore=leave)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / path.relative_to(ROOT)).write_text(text)
    result = run(folder, mutant.test)
    assert result.returncode != 0, (
        f"mutant {mutant.name!r} survives {mutant.test}: nothing guards `{mutant.find}` in "
        f"{mutant.where!r}"
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
