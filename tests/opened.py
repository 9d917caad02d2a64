"""Broken variants of final configurations, for tests of those who must notice them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ddice.core.config import Config


@contextmanager
def opened(*classes: type[Config]) -> Iterator[None]:
    """Within, these final classes can be subclassed, as nobody else can."""
    for cls in classes:
        cls.is_abstract = True
    try:
        yield
    finally:
        for cls in classes:
            cls.is_abstract = False
