"""words.py: how times, counts and lists read, and where what is said is printed."""
import io
import sys

import pytest

from amdlib.words import hours, log, minutes, number, plural, show_log, some, timestamp


@pytest.mark.parametrize(('seconds', 'text'), [(0, '0:00'), (5, '0:05'), (9.6, '0:10'), (100, '1:40'), (600, '10:00'),
                                               (3599, '59:59'), (7400, '2:03:20'), (36000, '10:00:00')])
def test_minutes(seconds, text):
    assert minutes(seconds) == text


def test_hours():
    assert [hours(seconds) for seconds in (0, 89, 95, 5399, 12600)] == ['1 min', '1 min', '2 min', '90 min', '3.5 h']


def test_numbers_and_lists():
    assert [number(value) for value in (None, float('nan'), 1.25, 0)] == ['–', '–', '1.2', '0.0']
    assert number(2e-5, 'g') == '2e-05'
    assert [plural(count, 'box', 'boxes') for count in (0, 1, 2)] == ['0 boxes', '1 box', '2 boxes']
    assert some('abc') == 'a, b, c'
    assert some(range(7), '; ') == '0; 1; 2; 3; 4; and 2 more'
    assert timestamp().endswith('+00:00')


def test_what_cannot_be_said_stops_nothing(capsys):
    closed = io.StringIO()
    show_log(closed)
    closed.close()
    log.info('into nowhere')
    assert 'closed file' in capsys.readouterr().err


def test_what_is_said_is_printed_once_where_standard_output_is_now(capsys, monkeypatch):
    show_log()
    show_log()
    log.info('first')
    assert capsys.readouterr().out == 'first\n'
    other = io.StringIO()
    monkeypatch.setattr(sys, 'stdout', other)
    log.info('second')
    assert other.getvalue() == 'second\n'
    show_log(sys.stderr)
    log.info('third')
    assert capsys.readouterr().err == 'third\n'
    assert other.getvalue() == 'second\n'
