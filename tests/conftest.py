"""One thread, no network, and a cache of its own: a test session neither finds nor leaves
anything outside its temporary folders.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once

from collections.abc import Iterator

import pytest
import torch

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
