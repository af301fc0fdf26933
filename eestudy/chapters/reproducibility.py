"""What benchmarks of reproducibility measured, as tables: JSON of facts and of lists of like records."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from eestudy.report.benchmarks import read
from eestudy.report.tables import Table, table


def measured(name: str) -> list[Table]:
    """The tables of benchmarks/<name>.json: one of its single facts, then one for each list of records in it.

    A fact inside a mapping is called "outer, inner". EestudyError when the file is not there, or is no such JSON.
    """
    content = read(name)
    found = dict(_flat(content if isinstance(content, dict) else {"records": content}))
    records = {key: value for key, value in found.items() if isinstance(value, list) and _all_records(value)}
    facts = {key: value for key, value in found.items() if key not in records}
    made = []
    if facts:
        frame = pd.DataFrame({"value": [_text(value) for value in facts.values()]}, index=list(facts))
        made.append(table(frame.rename_axis("fact"), f"Measured: {name}.", f"measured-{name}"))
    for key, rows in records.items():
        texts = pd.DataFrame([{_words(k): _text(v) for k, v in row.items()} for row in rows]).fillna("")
        first = texts.columns[0]
        made.append(table(texts.set_index(first), f"Measured: {name}, {_words(key)}.", f"measured-{name}-{len(made)}"))
    return made


def _flat(content: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{_words(key)}, ")
        else:
            yield f"{before}{_words(key)}", value


def _all_records(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(row, dict) and row for row in values)


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
