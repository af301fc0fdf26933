"""Tables as JSON for `records`: every column with its dtype, its floats rounded, and what repeats stored once.

Six digits are kept, of thresholds nine: many scores lie next to 1, and six would tell nobody apart.

A column is {"name", "dtype"} with one of: "values"; "constant" and "rows"; "levels" and "codes" (of texts that repeat).
NaN is null; infinities are the texts "inf" and "-inf". No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

ROWS = 10**7  # of a constant column, which a few bytes could make endless


def encoded_table(frame: pd.DataFrame) -> dict[str, Any]:
    """{"columns": [...]}, in the frame's order. Floats become float64, whole numbers int64, categories texts."""
    return {"columns": [_encoded(str(name), frame[name]) for name in frame.columns]}


def decoded_table(table: dict[str, Any]) -> pd.DataFrame:
    """The frame again. ValueError, KeyError, TypeError or IndexError for what `encoded_table` did not make."""
    return stacked_tables([table])[0]


def stacked_tables(tables: Sequence[dict[str, Any]]) -> tuple[pd.DataFrame, list[int]]:
    """Several tables one below the other, and how many rows each has; a column that some lack is empty there."""
    parts = [{column["name"]: (column["dtype"], _decoded(column)) for column in table["columns"]} for table in tables]
    lengths = []
    for part, table in zip(parts, tables, strict=True):
        sizes = {len(values) for _, values in part.values()}
        if len(part) < len(table["columns"]) or len(sizes) > 1:
            raise ValueError("columns of unequal length or equal name")
        lengths.append(sizes.pop() if sizes else 0)
    names = dict.fromkeys(name for part in parts for name in part)
    return pd.DataFrame({name: _stacked(name, parts, lengths) for name in names}, copy=False), lengths


def _stacked(name: str, parts: Sequence[dict[str, tuple[str, np.ndarray]]], lengths: Sequence[int]) -> Any:
    dtypes = {part[name][0] for part in parts if name in part}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float64" if dtypes <= {"int64", "float64"} else "object"
    lacking = any(name not in part for part in parts)
    if lacking and dtype in ("int64", "bool"):
        dtype = "float64" if dtype == "int64" else "object"
    empty = np.nan if dtype == "float64" else None
    arrays = [
        part[name][1] if name in part else np.full(rows, empty, dtype=np.float64 if dtype == "float64" else object)
        for part, rows in zip(parts, lengths, strict=True)
    ]
    whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return pd.Series(whole, dtype="str" if dtype == "str" else object) if dtype in ("str", "object") else whole


def _encoded(name: str, column: pd.Series) -> dict[str, Any]:
    values: list[Any]
    kind = column.dtype.kind if isinstance(column.dtype, np.dtype) else "O"
    if kind == "b":
        dtype, values = "bool", column.tolist()
    elif kind in "iu":
        dtype, values = "int64", [int(value) for value in column]
    elif kind == "f":
        digits = 9 if name.startswith("threshold") else 6
        dtype, values = "float64", [_number(value, digits) for value in column.astype(float)]
    else:
        dtype = "object" if column.dtype == object else "str"
        values = [_cell(value) for value in column]
    head = {"name": name, "dtype": dtype}
    first = values[0] if values else None
    if values and all(value == first and type(value) is type(first) for value in values):
        return {**head, "constant": first, "rows": len(values)}
    if dtype in ("str", "object") and all(isinstance(value, str) for value in values):
        levels = sorted(set(values))
        if 2 * len(levels) <= len(values):
            codes = {level: code for code, level in enumerate(levels)}
            return {**head, "levels": levels, "codes": [codes[value] for value in values]}
    return {**head, "values": values}


def _number(value: float, digits: int = 6) -> float | str | None:
    """Rounded; NaN and infinities as JSON can hold them."""
    if math.isnan(value):
        return None
    return float(f"{value:.{digits}g}") if math.isfinite(value) else str(float(value))


def _cell(value: Any) -> Any:
    """A cell of mixed columns: text, bool, number, None, or a list of them."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_cell(each) for each in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return _number(float(value))
    return None if value is None or value is pd.NA or value is pd.NaT else str(value)


def _decoded(column: dict[str, Any]) -> np.ndarray:
    """One column's values; texts and mixed ones as objects."""
    dtype = column["dtype"]
    if "constant" in column:
        rows = column["rows"]
        if not 0 <= rows <= ROWS:
            raise ValueError(f"{rows} rows")
        values = [column["constant"]] * rows
    elif "codes" in column:
        levels = column["levels"]
        values = [levels[code] for code in column["codes"]]
    else:
        values = column["values"]
    if not isinstance(values, list):
        raise TypeError("values")
    if dtype == "float64":
        return np.array(values, dtype=np.float64)  # None becomes NaN, "inf" infinity
    if dtype in ("int64", "bool"):
        wanted = int if dtype == "int64" else bool
        if any(type(value) is not wanted for value in values):
            raise ValueError(f"a column of {dtype} holds something else")
        return np.array(values, dtype=dtype)
    if dtype not in ("str", "object"):
        raise ValueError(f"dtype {dtype!r}")
    cells = np.empty(len(values), dtype=object)
    cells[:] = values
    return cells
