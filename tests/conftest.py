"""One thread, no network, and a cache of its own: a test session neither finds nor leaves
anything outside its temporary folders.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ddice.cli.main import main

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDICE_CACHE", str(tmp_path_factory.mktemp("ddice-cache")))
        yield


@pytest.fixture(scope="module")
def small_maze(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The id of a small dataset of the kind that the documentation uses."""
    from ddice.collection import make_pointmaze

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        yield make_pointmaze("umaze", steps=3000, progress=False)


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run a command here, in a folder of its own -> (exit status, output, errors)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(*arguments: str) -> tuple[int, str, str]:
        status = main(arguments)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call
