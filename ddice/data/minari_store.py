"""Minari datasets on this machine: where they lie, and what is written down about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ddice.core.reading import read_json
from ddice.data.download import missing, obtain

SOURCE_KEY = "ddice_ref_source"
"""In the metadata: where its reference scores come from."""

DAMAGED = (
    "it is damaged, or of a version of Minari that the installed one does not read; delete it, and "
    "make or download it again"
)


def is_minari(item: Any) -> bool:
    from minari import MinariDataset

    return isinstance(item, MinariDataset)


def has_dataset(dataset_id: str) -> bool:
    """Whether a complete dataset of this id lies in the local Minari folder
    (`MINARI_DATASETS_PATH`, else `~/.minari/datasets`). Raises ValueError for one whose metadata
    do not count its episodes.
    """
    count = dataset_metadata(dataset_id).get("total_episodes", 0)
    if not isinstance(count, int):
        raise ValueError(f"{dataset_id} cannot be read (total_episodes is {count!r}): {DAMAGED}")
    return count > 0


def dataset_metadata(dataset_id: str) -> dict[str, Any]:
    """What is written down about a local dataset; empty where there is none. Raises ValueError
    for a malformed id.
    """
    require_id(dataset_id)
    try:
        found = read_json(dataset_folder(dataset_id) / "data" / "metadata.json")
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def dataset_folder(dataset_id: str) -> Path:
    from minari.storage.datasets_root_dir import get_dataset_path

    return Path(get_dataset_path(dataset_id))


def require_id(dataset_id: str) -> None:
    from minari.dataset.minari_dataset import parse_dataset_id

    try:
        parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:
        raise ValueError(
            "expected a Minari id such as 'D4RL/pointmaze/umaze-v2' (namespace/name-v0), or a "
            f".npz, .hdf5 or .h5 file, got {dataset_id!r}"
        ) from error


def locate(item: Any, *, download: bool = True) -> Path:
    """The folder with the files of a Minari id, downloaded if need be, or of a `MinariDataset`.

    Raises ValueError for a malformed id; FileNotFoundError, at once, for a dataset that is neither
    here nor to be had, saying how to get or make it.
    """
    if not isinstance(item, str):
        return Path(item.storage.data_path)
    require_id(item)
    if not has_dataset(item):
        if not download:
            raise FileNotFoundError(missing(item, "download=False was given"))
        obtain(item)
    return dataset_folder(item) / "data"
