"""Kept features that are damaged are seen, whatever the damage."""
import json
import re

import numpy as np
import pytest

from amdlib.engine.kept import ARRAY, CARD
from amdlib.files import sha256, write_json
from amdlib.runs.taking import _damage


@pytest.fixture
def features(tmp_path):
    """Kept features of two pictures."""
    np.save(tmp_path / ARRAY, np.arange(4 * 6, dtype=np.float32).reshape(4, 6))
    write_json(tmp_path / CARD, {'image_ids': [3, 5], 'shapes': [[1, 2, 2], [2, 1, 1]],
                                 'array_sha256': sha256(tmp_path / ARRAY)})
    return tmp_path


def change(file, function):
    file.write_bytes(function(file.read_bytes()))


def without_hash(card):
    return json.dumps({key: value for key, value in json.loads(card).items() if key != 'array_sha256'}).encode()


def test_whole_features_are_whole(features):
    assert _damage(features, False) == ''
    change(features / CARD, without_hash)       # of an older kit
    assert _damage(features, False) == ''


@pytest.mark.parametrize(('file', 'spoil', 'told'), [
    (ARRAY, lambda old: old[:-5], 'ValueError: mmap length'),
    (ARRAY, lambda old: b'of another program', 'ValueError: '),
    (ARRAY, lambda old: old[:-1] + bytes([old[-1] ^ 1]), 'is not the file that was kept'),
    (CARD, lambda old: old[:-5], 'JSONDecodeError: '),
    (CARD, lambda old: b'[]', 'TypeError: '),
    (CARD, lambda old: old.replace(b'5\n', b'5,\n7\n'), r'is of shape \(4, 6\), expected \(6, 6\)')])
def test_damage_is_told(features, file, spoil, told):
    change(features / file, spoil)
    assert re.match(f'.*{told}', _damage(features, False))


@pytest.mark.parametrize('file', [ARRAY, CARD])
def test_what_was_not_kept_to_the_end_is_no_damage(features, file):
    (features / file).unlink()
    assert _damage(features, False) == ''


def test_a_card_alone_is_whole_where_features_are_only_measured(features):
    (features / ARRAY).unlink()
    assert _damage(features, True) == ''
