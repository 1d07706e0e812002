"""The numbers that the paper prints, from data/paper_tables.csv: one line a row of a table, joined by `key`."""
from __future__ import annotations

import csv
import functools

from amdlib.files import ROOT

CSV = ROOT / 'data' / 'paper_tables.csv'
# Between runs of one mmdet config on COCO that differ in their seed, standard deviation in mAP: the order of magnitude
# that is published, not a measurement of the paper's detectors.
PUBLISHED_SPREAD = (0.2, 0.3)


@functools.cache
def paper_lines(number: str) -> dict[tuple[str, str], dict[str, str]]:
    """The lines of one of the paper's tables ('I' to 'VI') by (group, key); '' = not reported."""
    with open(CSV, encoding='utf-8', newline='') as file:
        return {(line['group'], line['key']): line for line in csv.DictReader(file) if line['table'] == number}


def paper_groups() -> tuple[str, ...]:
    """The detector pairs that the paper reports; `GROUPS` may have others beside them."""
    return tuple(dict.fromkeys(group for group, _ in paper_lines('I')))


def paper_label(number: str, group: str, key: str) -> str | None:
    """How a table prints a row; None where it does not have it."""
    line = paper_lines(number).get((group, key))
    return line and line['row']


def paper_value(number: str, group: str, key: str, metric: str) -> float | None:
    """A printed number in percent; None where the paper reports none. Baseline and teacher are Table I's everywhere."""
    line = paper_lines('I' if key in ('teacher', 'baseline') else number).get((group, key), {})
    return float(line[metric]) if line.get(metric) else None
