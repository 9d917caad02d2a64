"""The graph engine's buckets, its buffers with a recording that only calls again, and memory
that runs out.
"""

from __future__ import annotations

import copy
import gc
import threading
import warnings
import weakref
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch
from test_engines import cases
from test_engines import inputs as engine_inputs
from torch import Tensor

from ddice.dice_backends import QConfig
from ddice.diffusion.guidance import Guidance
from ddice.diffusion.networks import MLP, ResidualScore
from ddice.diffusion.prediction import NoisePrediction
from ddice.diffusion.prior import DiffusionPrior
from ddice.diffusion.samplers import Actor, AnySampler, Diffusion, Gaussian, Selection
from ddice.diffusion.solvers import DDIM
from ddice.policies.engines import Choice
from ddice.policies.engines.base import Engine
from ddice.policies.engines.decision import DecisionProgram, decision_program
from ddice.policies.engines.eager import EagerEngine
from ddice.policies.engines.graph import Call, GraphEngine, buckets
from ddice.policies.policy import Policy, PolicyConfig
from ddice.testing.example import example_data

SPEC = example_data().spec
CPU = torch.device("cpu")
SAMPLING = Selection(rule="softmax", temperature=0.1)
GUIDED = Diffusion(
    prior=DiffusionPrior(prediction=NoisePrediction(), network=ResidualScore(width=8, blocks=1)),
    guidance=Guidance(network=MLP(hidden=(8,), activation="silu")),
    solver=DDIM(evaluations=3),
    clip_denoised=False,
)


def make(
    sampler: AnySampler = GUIDED, selection: Selection | None = None, candidates: int = 4
) -> Policy:
    q = QConfig(critic=MLP(hidden=(8,)), members=3, value=MLP(hidden=(8,)))
    config = PolicyConfig(
        sampler=sampler, candidates=candidates, selection=selection or Selection(), q=q
    )
    return Policy(config, SPEC, sampler.build(SPEC), q.build(SPEC))


def program(policy: Policy) -> DecisionProgram:
    return decision_program(policy.procedure)


def inputs(batch: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    shapes = (batch, SPEC.observations.size), (batch, 4, SPEC.actions.size)
    observations, noise = (torch.randn(shape, generator=source) for shape in shapes)
    return observations, noise, torch.rand(batch, generator=source)


class Recorder:
    """In the place of a CUDA graph: a recording that calls again, and how often that was."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, call: Call) -> Call:
        self.captures += 1

        def replay() -> None:
            self.replays += 1
            call()

        return replay


def graph(
    policy: Policy,
    *,
    batch_sizes: tuple[int, ...] = (1, 4),
    rows_per_call: int = 1000,
    capture: Recorder | None = None,
) -> GraphEngine:
    runner = partial(EagerEngine, program(policy), rows_per_call=rows_per_call)
    return GraphEngine(
        runner,
        capture or Recorder(),
        batch_sizes=batch_sizes,
        rows_per_call=rows_per_call,
        device=CPU,
    )


def same(got: Choice, expected: Choice) -> None:
    scale = float(expected.candidates.abs().max().clamp(min=1))
    torch.testing.assert_close(got.candidates, expected.candidates, rtol=0, atol=2e-6 * scale)
    torch.testing.assert_close(got.actions, expected.actions, rtol=0, atol=2e-6 * scale)
    assert torch.equal(got.chosen, expected.chosen)


def test_buckets() -> None:
    assert buckets((64, 1, 8, 8), 100) == (1, 8, 64)
    assert buckets((64, 1, 8), 10) == (1, 8, 10)
    assert buckets((64, 8), 1) == (1,)


@pytest.mark.parametrize(
    "sampler", [GUIDED, Gaussian(network=MLP(hidden=(8,)))], ids=lambda config: config.kind
)
@pytest.mark.parametrize(
    "selection", [Selection(), SAMPLING, Selection(rule="lcb")], ids=lambda s: s.rule
)
def test_padded_recordings_make_the_decisions_of_eager(
    sampler: AnySampler, selection: Selection
) -> None:
    """States below, at, between and above the buckets, so that others are left in the padding;
    above, the next power of two is recorded.
    """
    policy, recorder, kinds = make(sampler, selection), Recorder(), 1 + selection.samples
    engine, eager = graph(policy, capture=recorder), policy.compile("eager")
    assert (recorder.captures, recorder.replays) == (
        2 * kinds,
        2 * kinds,
    )  # both sizes were prepared; only a softmax reads random numbers
    for batch in (4, 3, 1, 2, 11, 9, 16):
        observations, noise, uniform = inputs(batch, seed=batch)
        same(engine.decide(observations, noise, None), eager.decide(observations, noise))
        same(
            engine.decide(observations, noise, uniform), eager.decide(observations, noise, uniform)
        )
    assert (recorder.captures, recorder.replays) == (3 * kinds, 2 * kinds + 2 * 7)
    assert {size for size, _ in engine._buckets} == {1, 4, 16}


def test_the_one_action_of_an_actor_is_recorded() -> None:
    policy = make(Actor(network=MLP(hidden=(8,))), candidates=1)
    engine, eager = graph(policy), policy.compile("eager")
    for batch in (3, 5):
        observations, noise, _ = inputs(batch, seed=batch)
        expected = eager.decide(observations, noise[:, :1])
        assert float(expected.actions.std(0).min()) > 1e-3
        same(engine.decide(observations, noise[:, :1], None), expected)


@pytest.mark.parametrize(
    ("which", "shape"), [(0, (3, 5)), (1, (3, 1, 2)), (1, (3, 4, 1)), (2, (3, 1))]
)
def test_other_shapes_than_the_recorded(which: int, shape: tuple[int, ...]) -> None:
    """A buffer would take them, spread over itself."""
    engine, given = graph(make(selection=SAMPLING)), list(inputs(3))
    given[which] = torch.zeros(shape)
    with pytest.raises(ValueError, match=r"expected a tensor of shape \(\d.*\), got \("):
        engine.decide(*given)


def test_a_choice_outlives_the_next_call() -> None:
    engine, (observations, noise, _) = graph(make()), inputs(4)
    first = engine.decide(observations, noise, None)
    kept = [tensor.clone() for tensor in first]
    engine.decide(-observations, -noise, None)
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


@pytest.mark.parametrize(("name", "policy"), [pytest.param(*case, id=case[0]) for case in cases()])
def test_a_decision_needs_nothing_of_the_host(name: str, policy: Policy) -> None:
    """Without numbers there is nothing that the host could read, and a tensor on another device
    would be refused: so it can be recorded.
    """
    config, meta = policy.config, torch.device("meta")
    policy = copy.deepcopy(policy)
    policy.sampler.to(meta)
    if policy.q is not None:
        policy.q.to(meta)
    found = decision_program(policy.procedure)
    for batch in (1, 3):
        given = [tensor.to(meta) for tensor in engine_inputs(policy, batch)]
        choice = EagerEngine(found, rows_per_call=1000).run(*given)
        assert all(tensor.device == meta for tensor in choice)
        assert [tuple(tensor.shape) for tensor in choice] == [
            (batch, 2),
            (batch, config.candidates, 2),
            (batch,),
        ]


def test_buffers_are_let_go_of_at_once() -> None:
    """Not when a garbage collector comes: memory that ran out is needed now."""
    engine = EagerEngine(program(make()), rows_per_call=1000)
    engine.decide(*inputs(3)[:2], None)
    bodies = [weakref.ref(body) for body in engine._bodies.values()]
    assert bodies
    gc.disable()
    try:
        engine.free()
        assert all(body() is None for body in bodies)
    finally:
        gc.enable()


def test_rows_per_call_bounds_the_buckets() -> None:
    policy, recorder = make(), Recorder()
    engine = graph(policy, batch_sizes=(16,), rows_per_call=8, capture=recorder)
    observations, noise, _ = inputs(5)
    same(engine.decide(observations, noise, None), policy.decide(observations, noise))
    assert {size for size, _ in engine._buckets} == {2}


def test_a_bad_row_spoils_no_other() -> None:
    """`act` refuses NaN; below it, a row of NaN stays by itself, and leaves nothing behind for
    the next call.
    """
    policy = make()
    engine, (observations, noise, _) = graph(policy), inputs(3)
    expected = policy.decide(observations, noise)
    bad = observations.clone()
    bad[1] = torch.nan
    got = engine.decide(bad, noise, None)
    assert got.candidates[1].isnan().any()
    same(
        Choice(*(tensor[[0, 2]] for tensor in got)),
        Choice(*(tensor[[0, 2]] for tensor in expected)),
    )
    same(engine.decide(observations, noise, None), expected)


def test_two_threads_at_once() -> None:
    policy = make()
    engine, eager = graph(policy), policy.compile("eager")
    given = [inputs(1 + seed, seed) for seed in range(8)]
    found: dict[int, list[Choice]] = {}

    def work(index: int) -> None:
        found[index] = [engine.decide(*given[index][:2], None) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(8):
        expected = eager.decide(*given[index][:2])
        for choice in found[index]:
            same(choice, expected)


def test_without_cuda() -> None:
    with pytest.raises(
        ValueError,
        match=(
            r"engine 'graph' needs a CUDA device; this policy is on cpu: policy\.to\('cuda'\) "
            r"first, or engine='eager'"
        ),
    ):
        make().compile("graph")


@pytest.mark.parametrize("name", ["reference", "eager"])
def test_bad_input(name: str) -> None:
    policy = make().compile(name)  # type: ignore[arg-type]
    size = SPEC.observations.size
    with pytest.raises(ValueError, match=r"NaN or infinity at \[1, 0\]"):
        policy.act(np.array([[0.0] * size, [np.nan] + [0.0] * (size - 1)]))
    with pytest.raises(ValueError, match="at least one observation, got an empty batch"):
        policy.act(np.zeros((0, size)))
    with pytest.raises(ValueError, match="at least one observation, got an empty batch"):
        policy.decide(*inputs(0)[:2])


class Small(Engine):
    """An engine on a device that holds so many rows: its actions are the observations' first
    numbers plus the first candidates'.
    """

    name = "small"

    def __init__(self, rows: int, rows_per_call: int = 1000):
        super().__init__(rows_per_call)
        self.rows, self.calls, self.freed = rows, list[int](), 0

    def free(self) -> None:
        self.freed += 1

    def run(self, observations: Tensor, noise: Tensor, uniform: Tensor | None) -> Choice:
        count = noise.shape[0] * noise.shape[1]
        self.calls.append(len(noise))
        if count > self.rows:
            raise torch.OutOfMemoryError(f"tried to allocate {count} rows")
        return Choice(
            observations[:, :1] + noise[:, 0], noise, torch.zeros(len(noise), dtype=torch.int64)
        )


def test_memory_that_runs_out() -> None:
    """Chunks are halved until they fit, the answer is that of one call, later calls begin with
    what fitted, and one warning says so.
    """
    observations, noise, _ = inputs(21)
    small = Small(rows=13)
    with pytest.warns(
        UserWarning,
        match=(
            r"21 states x 4 candidates: engine 'small' goes on with at most 10 at once, .* "
            r"rows_per_call=40 "
        ),
    ) as caught:
        got = small.decide(observations, noise, None)
    assert len(caught) == 1
    expected = Small(rows=1000).decide(observations, noise, None)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert small.calls == [21, 10, 5, 2, *[2] * 9, 1]
    assert (small.rows_per_call, small.freed) == (8, 3)
    small.calls.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small.decide(observations, noise, None)
    assert small.calls == [*[2] * 10, 1]


def test_results_of_chunks_are_copied_and_let_go_of() -> None:
    """Small tensors that stay between large ones that go would keep the memory of all chunks."""

    class Watched(Small):
        given: ClassVar[list[weakref.ref[Tensor]]] = []

        def run(self, observations: Tensor, noise: Tensor, uniform: Tensor | None) -> Choice:
            assert not any(tensor() is not None for tensor in self.given[:-1])
            choice = super().run(observations, noise, uniform)._replace(candidates=noise.clone())
            self.given.append(weakref.ref(choice.candidates))
            return choice

    observations, noise, _ = inputs(21)
    got = Watched(rows=1000, rows_per_call=8).decide(observations, noise, None)
    assert len(Watched.given) == 11
    assert torch.equal(got.candidates, noise)
    assert torch.equal(got.actions, observations[:, :1] + noise[:, 0])


def test_memory_for_no_state_at_all() -> None:
    with (
        pytest.warns(UserWarning, match="out of memory"),
        pytest.raises(
            torch.OutOfMemoryError,
            match=(
                r"one state with its 4 candidates does not fit into memory: .*tried to "
                r"allocate 4 rows"
            ),
        ),
    ):
        Small(rows=3).decide(*inputs(3)[:2], None)


def test_a_recording_that_runs_out_of_memory() -> None:
    """The graph engine prepares smaller buckets then, and its decisions stay those of eager."""
    policy = make()

    class Scarce(EagerEngine):
        def run(self, observations: Tensor, noise: Tensor, uniform: Tensor | None) -> Choice:
            if len(noise) > 3:
                raise torch.OutOfMemoryError("no memory for more than 3 states")
            return super().run(observations, noise, uniform)

    runner = partial(Scarce, program(policy), rows_per_call=1000)
    with pytest.warns(UserWarning, match="engine 'graph' goes on with at most 4 at once"):
        engine = GraphEngine(runner, Recorder(), batch_sizes=(8,), rows_per_call=1000, device=CPU)
    observations, noise, _ = inputs(9)
    same(engine.decide(observations, noise, None), policy.decide(observations, noise))
    assert {size for size, _ in engine._buckets} == {2}
