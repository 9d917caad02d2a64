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
from safetensors.torch import load, save
from torch import Tensor

from ddice.core.reading import parse_json, require_regular

SCHEMA = 1
HEADER_SIZE = 8  # bytes, in which a safetensors file says how long its header is


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
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
    # not mkstemp: its files are private, these follow the umask
    # Beside the file, because a rename is atomic only within a file system.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with explained(path):
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                # Before the rename: else a crash may leave the new name on an empty file.
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def append_line(path: Path, line: str, *, durable: bool = False) -> None:
    """Add a line to a file; on a full disk half of it may be written, and no line before it is
    lost. A `durable` one is there after the machine went down, too.
    """
    with explained(path), path.open("a") as file:
        file.write(line + "\n")
        if durable:
            file.flush()
            os.fsync(file.fileno())


def json_bytes(content: Any) -> bytes:
    """As `write_json` writes it."""
    return (json.dumps(content, indent=2, sort_keys=False) + "\n").encode()


def write_json(path: Path, content: Any) -> None:
    write_bytes(path, json_bytes(content))


def content_digest(content: Any) -> str:
    """32 hexadecimal digits of what JSON says, whatever the order of its keys."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def save_tensors(path: Path, kind: str, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """One safetensors file that carries its kind, the schema version, `meta` (JSON) and a digest
    of all that in its header.
    """
    write_bytes(path, tensors_to_bytes(kind, tensors, meta))


def tensors_to_bytes(kind: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> bytes:
    """The content of the file that `save_tensors` writes."""
    # Clones, because safetensors refuses two names for one storage (a shared layer, a view).
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    about = {"kind": kind, "schema": SCHEMA, **meta}
    header = json.dumps({**about, "digest": _digest(copies, about)})
    return save(copies, metadata={"ddice": header})


def _digest(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """Of names, types, shapes, bytes and what is said about them: safetensors has no checksum of
    its own.
    """
    found = hashlib.blake2b(json.dumps(about).encode(), digest_size=16)
    # safetensors keeps an order of its own, so that the order of writing is not that of reading.
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        if tensor.numel():
            # As bytes, because numpy has no bfloat16.
            found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def load_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and the meta data of a file that `save_tensors` wrote.

    Raises ValueError when the file is truncated, damaged, foreign, no regular file, of another kind
    or of a newer schema; FileNotFoundError when it is not there.
    """
    require_regular(path)
    with _readable(path, kind), safe_open(str(path), framework="pt", device="cpu") as file:
        meta = _about(path, (file.metadata() or {}).get("ddice"), kind)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return _checked(path, kind, tensors, meta)


def tensors_from_bytes(content: bytes, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """As `load_tensors`, of what `tensors_to_bytes` gave."""
    place = Path(f"bytes of a {kind}")
    with _readable(place, kind):
        tensors = load(content)  # first, because it knows a header from anything else
        size = int.from_bytes(content[:HEADER_SIZE], "little")
        header = parse_json(content[HEADER_SIZE : HEADER_SIZE + size])
        meta = _about(place, header.get("__metadata__", {}).get("ddice"), kind)
    return _checked(place, kind, tensors, meta)


@contextlib.contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read as a {kind} ({error}): truncated, or not safetensors; "
            "delete it and train again"
        ) from error


def _about(path: Path, header: str | None, kind: str) -> dict[str, Any]:
    if header is None:
        raise ValueError(f"{path} is a safetensors file, but not one of ddice: expected a {kind}")
    meta = parse_json(header)
    check_kind(path, meta, kind)
    return dict(meta)


def _checked(
    path: Path, kind: str, tensors: dict[str, Tensor], meta: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
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
    about = meta if isinstance(meta, dict) else {}
    found = about.get("kind", "file without a kind")
    if found != kind:
        raise ValueError(f"expected {path} to hold a {kind}, got a {found}")
    if about.get("schema") != SCHEMA:
        raise ValueError(
            f"{path} has schema {about.get('schema')}, this version of ddice reads schema "
            f"{SCHEMA}: use the version that wrote it"
        )
