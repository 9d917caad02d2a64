"""Tensors and JSON on disk: written whole or not at all, read without ever unpickling."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

SCHEMA = 1


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Errors of writing name the file and what to do; those of a full disk do neither by
    themselves.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        reason = (
            f"{error.strerror or error}; what was there before is unchanged. Free space or "
            "choose another folder, then run the command again"
        )
        raise OSError(error.errno, reason, str(path)) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: after a crash or on a full disk the old content is still there,
    whole.
    """
    temporary = path.with_name(
        f".{path.name}.{secrets.token_hex(8)}"
    )  # not mkstemp: its files are private, these follow the umask
    with _explained(path):
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def append_line(path: Path, line: str) -> None:
    """Add a line to a file; on a full disk half of it may be written, and no line before it is
    lost.
    """
    with _explained(path), path.open("a") as file:
        file.write(line + "\n")


def write_json(path: Path, content: Any) -> None:
    write_bytes(path, (json.dumps(content, indent=2, sort_keys=False) + "\n").encode())


def save_tensors(path: Path, kind: str, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """One safetensors file that carries its kind, the schema version, `meta` (JSON) and a digest
    of all that in its header.
    """
    # Clones, because safetensors refuses two names for one storage (a shared layer, a view).
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    about = {"kind": kind, "schema": SCHEMA, **meta}
    write_bytes(
        path,
        save(copies, metadata={"ddice": json.dumps({**about, "digest": _digest(copies, about)})}),
    )


def _digest(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """Of names, types, shapes, bytes and what is said about them: safetensors has no checksum of
    its own.
    """
    found = hashlib.blake2b(json.dumps(about).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return found.hexdigest()


def load_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and the meta data of a file that `save_tensors` wrote.

    Raises ValueError when the file is truncated, damaged, foreign, of another kind or of a newer
    schema; FileNotFoundError when it is not there.
    """
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            header = (file.metadata() or {}).get("ddice")
            if header is None:
                raise ValueError(
                    f"{path} is a safetensors file, but not one of ddice: expected a {kind}"
                )
            meta = json.loads(header)
            check_kind(path, meta, kind)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read as a {kind} ({error}): truncated, or not safetensors; "
            "delete it and train again"
        ) from error
    if meta.pop("digest", None) != _digest(tensors, meta):
        raise ValueError(
            f"{path} is damaged: its {kind} does not have the digest that was written with it; "
            "delete it and train again"
        )
    return tensors, meta


def check_kind(path: Path, meta: Any, kind: str) -> None:
    """Raise ValueError unless `meta` says that the file at `path` is a `kind` that this version
    reads.
    """
    found = (
        meta.get("kind", "file without a kind") if isinstance(meta, dict) else "file without a kind"
    )
    if found != kind:
        raise ValueError(f"expected {path} to hold a {kind}, got a {found}")
    if meta.get("schema") != SCHEMA:
        raise ValueError(
            f"{path} has schema {meta.get('schema')}, this version of ddice reads schema "
            f"{SCHEMA}: use the version that wrote it"
        )
