"""Tables as Parquet files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any


def parquet_bytes(records: Sequence[dict[str, Any]]) -> bytes:
    """The file of a table, a dict per row. Raises ImportError without pyarrow."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "a Parquet file needs pyarrow: pip install 'ddice[parquet]', or take --csv"
        ) from error
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(records)), sink)
    return sink.getvalue()
