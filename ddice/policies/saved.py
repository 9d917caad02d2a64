"""A policy on disk. `policy.safetensors` is all of it, with one digest, so that no kill mixes two
policies; `policy.json` shows people what it says, and is never believed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ddice.core.reading import read_json
from ddice.core.storage import (
    SCHEMA,
    check_kind,
    json_bytes,
    load_tensors,
    save_tensors,
    tensors_from_bytes,
    tensors_to_bytes,
    write_bytes,
)

KIND = "policy"
WHOLE, SHOWN = "policy.safetensors", "policy.json"
SECTIONS = ("policy", "spec")


class SavedPolicy(NamedTuple):
    """How a policy is made ("policy" and "spec", as JSON) and the tensors of its networks."""

    description: dict[str, Any]
    tensors: dict[str, Tensor]

    def to_bytes(self) -> bytes:
        """All of it, as in the file."""
        return tensors_to_bytes(KIND, self.tensors, self.description)

    def shown(self) -> bytes:
        """What `policy.json` says."""
        return json_bytes(_shown(self.description))


def policy_folder(path: str | Path) -> Path:
    """The folder of a policy, given that or the folder of its run.

    Raises FileNotFoundError where neither holds a policy.
    """
    path = Path(path)
    for folder in (path / "policy", path):
        if (folder / WHOLE).exists() or (folder / SHOWN).exists():
            return folder
    raise FileNotFoundError(
        f"{path} holds no policy: expected a folder that policy.save(...) wrote, or a run whose "
        "training has finished"
    )


def write_policy(folder: Path, saved: SavedPolicy) -> None:
    """Write both files; whenever this is killed, the folder holds the old policy or the new one."""
    save_tensors(folder / WHOLE, KIND, saved.tensors, saved.description)
    # Last: killed in between, the text lags behind a policy that is whole.
    write_bytes(folder / SHOWN, saved.shown())


def read_policy(folder: Path) -> SavedPolicy:
    """What `write_policy` wrote. Warns where `policy.json` shows something else.

    Raises ValueError for truncated, damaged, foreign or newer files.
    """
    tensors, meta = load_tensors(folder / WHOLE, KIND)
    if "policy" not in meta:
        return SavedPolicy(_description(folder / SHOWN), tensors)
    saved = _saved(tensors, meta)
    if (folder / SHOWN).exists() and not _agrees(folder / SHOWN, saved):
        warnings.warn(
            f"{folder / SHOWN} does not show the policy in {WHOLE}, which is loaded as it was "
            "saved: the text was edited or damaged (policy.with_settings changes a policy), or "
            "the process that saved it was killed before it wrote it",
            UserWarning,
            stacklevel=3,
        )
    return saved


def policy_from_bytes(content: bytes) -> SavedPolicy:
    """The inverse of `SavedPolicy.to_bytes`. Raises ValueError for other bytes."""
    return _saved(*tensors_from_bytes(content, KIND))


def write_whole(folder: Path, content: bytes) -> SavedPolicy:
    """Write the policy that came as the bytes of its first file. Raises ValueError for damaged and
    foreign ones, before anything is written.
    """
    saved = policy_from_bytes(content)
    write_bytes(folder / WHOLE, content)
    write_bytes(folder / SHOWN, saved.shown())
    return saved


def _saved(tensors: dict[str, Tensor], meta: Mapping[str, Any]) -> SavedPolicy:
    if missing := [name for name in SECTIONS if name not in meta]:
        raise ValueError(f"the policy lacks {', '.join(missing)}: an earlier version wrote it")
    return SavedPolicy({name: meta[name] for name in SECTIONS}, tensors)


def _shown(description: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": KIND, "schema": SCHEMA, **description}


def _agrees(path: Path, saved: SavedPolicy) -> bool:
    try:
        return bool(read_json(path) == _shown(saved.description))
    except (OSError, ValueError):
        return False


def _description(path: Path) -> dict[str, Any]:
    """Of a policy of an earlier version, whose tensors do not carry it."""
    content = read_json(path)
    check_kind(path, content, KIND)
    if missing := [name for name in SECTIONS if name not in content]:
        raise ValueError(f"{path} lacks {', '.join(missing)}: the file is truncated or foreign")
    return {name: content[name] for name in SECTIONS}
