"""Keep the results of comparisons, and put committed tables into docs/which.md and docs/fast.md.

    make tables                               # everything: trains for hours, see the Makefile
    python benchmarks/tables.py runs/tables   # take in the run folders below runs/tables, then
    write the pages' tables again python benchmarks/tables.py               # write the pages'
    tables from what is committed

A run folder is kept as benchmarks/results/<its name>: configuration, every episode's score, table,
plot and diagnosis. In a page a table stands between the lines <!-- results/NAME/FILE.md --> and
<!-- end -->.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGES = tuple(HERE.parent / "docs" / f"{name}.md" for name in ("which", "fast"))
KEPT = ("comparison.json", "results.jsonl", "table.md", "scores.png", "diagnosis.md")
BLOCK = re.compile(r"(<!-- results/(\S+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)


def take_in(runs: Path) -> list[str]:
    """Copy what is kept of every comparison below `runs`; their names."""
    names = []
    for run in sorted(path.parent for path in runs.glob("*/results.jsonl")):
        target = RESULTS / run.name
        target.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            if (run / name).exists():
                shutil.copyfile(run / name, target / name)
        names.append(run.name)
    return names


def filled(page: str) -> str:
    """The page with every table as it is committed. Raises FileNotFoundError for a table that is
    not there.
    """
    return BLOCK.sub(
        lambda match: f"{match[1]}{(RESULTS / match[2]).read_text().strip()}\n{match[3]}", page
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="?", type=Path, help="folder of run folders")
    options = parser.parse_args()
    if options.runs is not None:
        print(f"kept: {', '.join(take_in(options.runs))}")
    for page in PAGES:
        page.write_text(filled(page.read_text()))
        print(f"written: {page}")


if __name__ == "__main__":
    main()
