"""Engines: one decision program, run in several ways."""

from ddice.policies.engines.base import Choice, Engine, Procedure, QCallable
from ddice.policies.engines.making import (
    REFERENCE,
    EngineDtype,
    EngineName,
    EngineSettings,
    make_engine,
)
from ddice.policies.engines.program import NotCovered

__all__ = [
    "REFERENCE",
    "Choice",
    "Engine",
    "EngineDtype",
    "EngineName",
    "EngineSettings",
    "NotCovered",
    "Procedure",
    "QCallable",
    "make_engine",
]
