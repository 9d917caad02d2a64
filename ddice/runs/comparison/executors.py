"""Who does the work of a comparison: this process, or several of its own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from ddice.core.config import Config, from_kind


class Serial(Config):
    """This process, one policy after the other."""

    kind: Literal["serial"] = "serial"


class Process(Config):
    """Worker processes of this machine, each at one policy."""

    kind: Literal["process"] = "process"
    workers: int | None = Field(
        None, ge=1, description="as many as cores, or as memory allows, unless given"
    )
    threads: int = Field(1, ge=1, description="of PyTorch in each worker")


AnyExecutor = Annotated[
    Annotated[Serial | Process, Field(discriminator="kind")],
    BeforeValidator(from_kind),
]
