"""docs/off_policy.md is what its script writes from the committed results."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_page_follows_from_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location(
        "off_policy_report", ROOT / "benchmarks" / "off_policy_report.py"
    )
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(script, "ROOT", tmp_path)
    script.main()
    assert (tmp_path / "docs" / "off_policy.md").read_text() == (
        ROOT / "docs" / "off_policy.md"
    ).read_text()
