"""Engines: one decision program, run in several ways."""

from ddice.engines.base import Choice, Engine, Parts, QCallable
from ddice.engines.making import REFERENCE, EngineDtype, EngineName, EngineSettings, make_engine
from ddice.engines.program import NotCovered

__all__ = [
    "REFERENCE",
    "Choice",
    "Engine",
    "EngineDtype",
    "EngineName",
    "EngineSettings",
    "NotCovered",
    "Parts",
    "QCallable",
    "make_engine",
]
