"""where.py: CPU time is put down to the part that the program is in, long operations too; the parts are there."""
import time
from pathlib import Path

import mmdet
import mmengine
import numpy as np
import pytest
import torch

import amdlib
from amdlib.scale import where


def outer(until_s):
    while time.process_time() < until_s:
        inner()


def inner():
    sum(range(1000))


def in_one_operation():
    np.sort(np.random.default_rng(0).random(4_000_000))


def test_time_is_that_of_the_innermost_part_and_adds_up():
    places = tuple((name, 'test_where.py', name) for name in ('outer', 'inner', 'in_one_operation'))
    began_s = time.process_time()
    with where.Sampler(places).looking() as sampler:
        outer(time.process_time() + 0.3)
        outer_s = time.process_time() - began_s
        in_one_operation()
        took_s = time.process_time() - began_s
    found = sampler.seconds
    assert found.total() == pytest.approx(took_s, abs=0.05)
    assert found['outer'] + found['inner'] == pytest.approx(outer_s, abs=0.05)
    assert found['inner'] > found['outer']
    assert found['in_one_operation'] == pytest.approx(took_s - outer_s, abs=0.05)


@pytest.mark.parametrize(('part', 'file', 'function'), where.PLACES)
def test_every_place_is_there(part, file, function):
    """A library that renames one would move its time to the rest, unnoticed."""
    if file.startswith('<'):
        return
    site = Path(torch.__file__).parent
    known = [site / file.removeprefix('torch/'), *(found for package in (mmengine, mmdet, amdlib) for found in
             Path(package.__file__).parent.rglob(Path(file).name) if str(found).endswith(file))]
    assert any(f'def {function}(' in one.read_text() for one in known if one.is_file()), part


def test_a_command_is_counted_with_what_it_starts():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'sum(range(20_000_000))'])"
    began_s = time.process_time()
    sum(range(20_000_000))
    alone_s = time.process_time() - began_s
    assert where.of_command(['-c', code]) > 0.5 * alone_s


def test_what_is_no_arithmetic_is_told_by_its_share():
    text = '\n'.join(where.text_of({'parts': {'start-up': 2.0, 'student: gradient': 6.0}, 'import_s': 2.5, 'runs': 3},
                                   'retinanet'))
    assert '| student: gradient | 6.0     | 75.0%   |' in text
    assert 'Not arithmetic: 2 s, 25%. ' in text
    assert '2.5 s, which would be 5 s more' in text
