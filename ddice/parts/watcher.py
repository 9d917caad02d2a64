"""Watchers: what looks at a stage while it trains, and changes nothing of it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn


class Watcher(Protocol):
    """Looks at the parts of a stage after every `every` steps, and after the last one.

    Its random numbers come from streams of its own (`ddice.core.randomness`), so that a look
    depends on the parts and the step alone.
    """

    @property
    def name(self) -> str:
        """What its numbers are called by: "name/key" in metrics, status and TensorBoard."""

    @property
    def every(self) -> int:
        """Steps from one look to the next, at least 1."""

    @property
    def identity(self) -> str:
        """Names all that its numbers depend on beyond the training that it looks at: settings of
        its own. Numbers of another identity are not taken for its own.
        """

    def look(self, step: int) -> Mapping[str, float]:
        """Finite numbers by their keys, after `step` steps; what is not known is left out."""


class WatcherFailed(RuntimeError):
    """A watcher raised, or gave what is no finite number; the last checkpoint, if there is one, is
    kept.
    """


def due(watcher: Watcher, step: int, stop: int) -> bool:
    """Whether a watcher looks after `step` of `stop` steps."""
    return step % watcher.every == 0 or step == stop


def looks(watcher: Watcher, start: int, stop: int) -> list[int]:
    """The steps after which a watcher looks, of a stage that begins after `start` steps."""
    return [step for step in range(start + 1, stop + 1) if due(watcher, step, stop)]


@dataclass(frozen=True)
class Undisturbing:
    """A watcher under which the modules stay as they are: they are in eval mode and without
    gradients during a look, and in their own modes after it, as the global generators are.
    """

    watcher: Watcher
    modules: tuple[nn.Module, ...]

    @property
    def name(self) -> str:
        return self.watcher.name

    @property
    def every(self) -> int:
        return self.watcher.every

    @property
    def identity(self) -> str:
        return self.watcher.identity

    def look(self, step: int) -> Mapping[str, float]:
        with torch.no_grad(), _same_generators(), _evaluating(self.modules):
            return self.watcher.look(step)


@contextlib.contextmanager
def _evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    # One by one: a part may have put some of its modules into another mode than itself.
    modes = [(inner, inner.training) for module in modules for inner in module.modules()]
    for inner, _ in modes:
        inner.training = False
    try:
        yield
    finally:
        for inner, mode in modes:
            inner.training = mode


@contextlib.contextmanager
def _same_generators() -> Iterator[None]:
    """The global generators afterwards as before: nothing here draws from them, but an environment
    or a part of somebody else may.
    """
    of_python, of_numpy = random.getstate(), np.random.get_state()
    # A training that is not on CUDA must not wake it up.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
