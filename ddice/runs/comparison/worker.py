"""A worker process of a comparison: lines of JSON come in, each an order, and go out."""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import torch

from ddice.core import cache
from ddice.core.plugins import EVERY_MODULE
from ddice.core.reading import parse_json
from ddice.runs.comparison.cells import Job, Shelf, run_cell
from ddice.runs.comparison.failures import cause_of, trace_of
from ddice.runs.comparison.grid import Comparison
from ddice.runs.comparison.store import cell_key

READY, SAY, WARN, ALARM = "ready", "say", "warn", "alarm"
STEP, DONE, FAILED, BUSY = "step", "done", "failed", "busy"


def main() -> None:
    """Work until nobody orders any more. A driver that dies closes the pipe: what is being trained
    is saved, and the worker ends.
    """
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no message
    orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    worker = Worker(channel, orders.get())
    while True:
        worker.obey(orders.get())


def _listen(orders: queue.SimpleQueue[dict[str, Any]]) -> None:
    for line in sys.stdin.buffer:
        orders.put(parse_json(line))
    # The loop of training hears it between two steps, and saves; elsewhere it ends at once.
    os.kill(os.getpid(), signal.SIGTERM)


class Worker:
    """Does one cell after the other of the comparison that the first message describes."""

    def __init__(self, channel: TextIO, about: Mapping[str, Any]):
        self.channel = channel
        torch.set_num_threads(about["threads"])
        # what it names was checked, and imported, where it comes from
        comparison = Comparison.read(about["comparison"], trust=(EVERY_MODULE,))
        self.cells = list(comparison.cells())
        self.folder = Path(about["folder"])
        self.shelf = Shelf(about["trust_env"])
        self.checkpoint_every: int = about["checkpoint_every"]
        warnings.showwarning = lambda message, *_, **__: self._send(WARN, str(message))
        self._send(READY, None)

    def obey(self, order: Mapping[str, Any]) -> None:
        """Do a cell, and say how that ended."""
        cell = self.cells[order["number"]]
        if not order["curve"]:
            cell = replace(cell, recipe=cell.recipe.without_curve)
        job = Job(order["number"], cell, order["key"], leads=False)
        try:
            data = self.shelf.of(cell.recipe)
            if cell_key(cell, data.whole) != job.key:
                raise ValueError(
                    "the worker reads other data than the comparison did when it began: do not "
                    "change files while they are worked on"
                )
            result = run_cell(
                job,
                data,
                self.folder / cell.folder,
                checkpoint_every=self.checkpoint_every,
                say=lambda text: self._send(SAY, text),
                on_warning=lambda text: self._send(ALARM, text),
                reporter=lambda *told: self._send(STEP, told),
                trust_env=self.shelf.trust_env,
                wait_for=order["wait_for"],
            )
        except cache.Busy as error:
            self._send(BUSY, str(error))
        except Exception as error:
            self._send(FAILED, [cause_of(error), trace_of(error)])
        else:
            self._send(DONE, result.model_dump(mode="json"))

    def _send(self, kind: str, content: Any) -> None:
        try:
            self.channel.write(json.dumps([kind, content]) + "\n")
            self.channel.flush()
        except BrokenPipeError:
            pass  # nobody is there any more, and the signal of `_listen` is on its way
