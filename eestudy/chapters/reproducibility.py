"""What benchmarks of reproducibility measured, as tables: JSON of facts and of lists of like records."""

from typing import Any

import pandas as pd

from eestudy.report.benchmarks import read
from eestudy.report.tables import Table, table


def measured(name: str) -> list[Table]:
    """The tables of benchmarks/<name>.json: one of its single facts, then one for each list of records in it.

    A fact inside a mapping is called "outer, inner". EestudyError when the file is not there, or is no such JSON.
    """
    content = read(name)
    facts: dict[str, Any] = {}
    records: dict[str, list[dict[str, Any]]] = {}
    _sorted_out(content if isinstance(content, dict) else {"records": content}, "", facts, records)
    made = []
    if facts:
        frame = pd.DataFrame({"value": [_text(value) for value in facts.values()]}, index=list(facts))
        made.append(table(frame.rename_axis("fact"), f"Measured: {name}.", f"measured-{name}"))
    for key, rows in records.items():
        texts = pd.DataFrame([{_words(k): _text(v) for k, v in row.items()} for row in rows]).fillna("")
        first = texts.columns[0]
        made.append(table(texts.set_index(first), f"Measured: {name}, {_words(key)}.", f"measured-{name}-{len(made)}"))
    return made


def _sorted_out(
    content: dict[str, Any], before: str, facts: dict[str, Any], records: dict[str, list[dict[str, Any]]]
) -> None:
    for key, value in content.items():
        named = f"{before}, {_words(key)}" if before else _words(key)
        if isinstance(value, dict) and value:
            _sorted_out(value, named, facts, records)
        elif isinstance(value, list) and value and all(isinstance(row, dict) and row for row in value):
            records[named] = value
        else:
            facts[named] = value


def _words(key: object) -> str:
    return str(key).replace("_", " ")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(_text(each) for each in value)
    if isinstance(value, dict):
        return ", ".join(f"{_words(key)} {_text(each)}" for key, each in value.items())
    return "" if value is None else str(value)
