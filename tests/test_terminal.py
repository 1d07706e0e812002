"""terminal.py: what is said is no wider than the terminal, and progress is one line."""
import io
import os

import pytest

from amdlib import terminal
from amdlib.terminal import Screen, coloured, fitted

TABLE = '| RetinaNet |  47.9 | +0.4 [-0.3, +1.1] |'


class Stream(io.StringIO):
    """A terminal of 30 columns, or none."""

    def __init__(self, is_terminal):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal

    def seen(self):
        """What stands there in the end, line by line, as a terminal shows it; the widest line that ever stood there."""
        lines, widest = [], 0
        for line in self.getvalue().split('\n'):
            shown = ''
            for part in line.split('\r'):
                shown = part + shown[len(part):]
                widest = max(widest, len(part))
            lines.append(shown.rstrip())
        return lines, widest


@pytest.fixture
def screen(monkeypatch):
    monkeypatch.setattr(terminal.shutil, 'get_terminal_size', lambda: os.terminal_size((30, 24)))
    monkeypatch.setenv('NO_COLOR', '1')
    return lambda is_terminal: Screen(Stream(is_terminal))


def test_lines_fit():
    assert fitted(TABLE, None) == fitted(TABLE, len(TABLE)) == TABLE
    assert fitted(TABLE, 30) == '| RetinaNet |  47.9 |…'
    assert fitted(TABLE, 20) == '| RetinaNet |…'
    assert fitted('  one two three four', 12) == '  one two\n    three\n    four'
    assert fitted('results/mini/a-folder/that-is-long', 20) == 'results/mini/a-folder/that-is-long'    # to be copied


def test_colour_where_there_is_a_terminal_that_wants_it(monkeypatch):
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.delenv('NO_COLOR', raising=False)
    assert coloured('a-run  done     50.0 mAP', Stream(True)) == 'a-run  \033[32mdone\033[0m     50.0 mAP'
    assert coloured('[3/7] a-run: FAILED, exit 1', Stream(True)) == '[3/7] a-run: \033[31mFAILED\033[0m, exit 1'
    assert coloured('3 of 7 runs are done, retinanet-failed-s0', Stream(True)) == (
        '3 of 7 runs are done, retinanet-failed-s0')
    assert coloured('failed', Stream(False)) == 'failed'
    monkeypatch.setenv('NO_COLOR', '1')
    assert coloured('failed', Stream(True)) == 'failed'
    monkeypatch.delenv('NO_COLOR')
    monkeypatch.setenv('TERM', 'dumb')
    assert coloured('failed', Stream(True)) == 'failed'


def test_progress_is_one_line_below_what_stays(screen):
    there = screen(True)
    for text in ('first ' * 9, 'second'):
        there.progress(text)
    there.say('a run has ended')
    there.progress('third')
    lines, widest = there.stream.seen()
    assert lines == ['a run has ended', 'third']
    assert widest < 30


def test_into_a_log_goes_a_line_of_progress_now_and_then(screen, monkeypatch):
    there, now = screen(False), [100.0]
    monkeypatch.setattr(terminal.time, 'monotonic', lambda: now[0])
    for second in range(45):
        now[0] = 100.0 + second
        there.progress(f'step {second} ' * 9)
    there.say('ended')
    assert there.stream.getvalue().splitlines() == [*(f'step {second} ' * 9 for second in (0, 20, 40)), 'ended']


@pytest.mark.parametrize('size', [1, 3, 1000])
def test_what_a_kernel_says_arrives_as_it_was_said(screen, size):
    kernel = Screen(type('OutStream', (io.StringIO,), {'__module__': 'ipykernel.iostream'})())
    kernel.say('before')
    kernel.progress('[0/1] 10 %')
    kernel.progress('[0/1] 9 %')
    kernel.say('[1/1] a run, in words that are longer than that')
    kernel.stream.write('no end')
    assert kernel.rewrites
    text, logged, shown = kernel.stream.getvalue(), screen(False), screen(True)
    for there in (logged, shown):
        for at in range(0, len(text), size):
            there.write(text[at:at + size])
        there.close()
    assert [line for line in logged.stream.getvalue().splitlines() if '%' not in line] == [
        'before', '[1/1] a run, in words that are longer than that', 'no end']
    assert shown.stream.seen() == (['before', '[1/1] a run, in words that are', '  longer than that', 'no end', ''], 30)
