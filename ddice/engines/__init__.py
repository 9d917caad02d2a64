"""Engines: one decision program, run in several ways."""

from ddice.engines.base import Choice, Engine
from ddice.engines.making import REFERENCE, EngineDtype, EngineName, EngineSettings, make_engine
from ddice.engines.program import NotCovered
from ddice.engines.reference import QCallable

__all__ = ["REFERENCE", "Choice", "Engine", "EngineDtype", "EngineName", "EngineSettings", "NotCovered", "QCallable", "make_engine"]
