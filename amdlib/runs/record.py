"""What a record holds, and whether a file is one: whoever reads a record reads it here."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from amdlib.files import read_json

FIELDS = {'row': str, 'label': str, 'seed': int, 'settings': dict, 'settings_hash': str, 'code': dict, 'data': dict,
          'teacher': dict | None, 'numbers': dict, 'weights_sha256': str, 'steps': int | None,
          'train_s': float | int | None, 'began': str, 'device': str, 'threads': int, 'peak_memory_bytes': int,
          'peak_gpu_memory_bytes': int | None, 'operators': str, 'versions': dict, 'files': dict, 'profile': str}
PARTS = {'code': {'commit': str | None, 'clean': bool | None}, 'data': {'name': str, 'fingerprint': str},
         'teacher': {'id': str, 'weights_sha256': str}}
OF_SOME = {'id': str, 'group': str, 'machine': dict, 'method_file': dict | None}    # of newer ones


def read_record(file: Path, whole: bool = False) -> dict[str, Any]:
    """A record whose fields are of their kinds and whose numbers are percentages.

    Args:
        whole: every field must be there.
    Errors: OSError; ValueError that says what is wrong.
    """
    record = read_json(file)
    if not isinstance(record, dict):
        raise ValueError(f'it holds {type(record).__name__}, not a record')
    if missing := FIELDS.keys() - record.keys() if whole else ():
        raise ValueError(f'it lacks {", ".join(sorted(missing))}')
    wrong = [*_wrong(record, FIELDS | OF_SOME, False)]
    for name, parts in PARTS.items():
        if isinstance(record.get(name), dict):
            wrong += [f'{name}.{part}' for part in _wrong(record[name], parts, whole)]
    if isinstance(numbers := record.get('numbers'), dict):
        wrong += [f'numbers.{name}' for name, value in numbers.items() if not _is_percentage(value)]
        # given weights of other classes are used and not counted: no number at all
        uncounted = record.get('steps') == 0 and set(numbers.values()) == {None}
        wrong += ['numbers.mAP'] if numbers.get('mAP') is None and not uncounted else []
    if wrong:
        raise ValueError(f'{", ".join(wrong)} is not what it should be')
    return record


def _wrong(values: Mapping[str, Any], kinds: Mapping[str, Any], all_of_them: bool) -> Iterator[str]:
    for name, kind in kinds.items():
        if name not in values:
            if all_of_them:
                yield name
        elif not isinstance(values[name], kind):
            yield name


def _is_percentage(value: Any) -> bool:
    return value is None or isinstance(value, (float, int)) and 0 <= value <= 100   # NaN is none
