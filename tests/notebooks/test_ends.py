"""How an execution ends: in silence, in one line where it is interrupted, and never with half a notebook."""
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from amdlib.files import ROOT

pytestmark = pytest.mark.slow
EXECUTE = """
import sys
from pathlib import Path
from amdlib.runs.notebooks import execute
try:
    execute(Path('kept/book.ipynb'), Path('out/book.ipynb'), {})
except KeyboardInterrupt:   # as the command line does
    sys.exit('interrupted')
"""
WAITING = """
import time
from pathlib import Path
try:
    print('waiting', flush=True)    # here: an interrupt that comes at once must meet the cell's own clean-up
    time.sleep(100)
finally:
    time.sleep(1)
    Path('../ended').touch()    # such as a batch that takes its runs along
"""


@pytest.fixture
def executing(tmp_path):
    """Cells -> the process that executes a notebook of them, in a process group of its own."""
    started = []

    def start(*cells):
        book = nbformat.v4.new_notebook(metadata={'kernelspec': {
            'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}})
        book.cells = [nbformat.v4.new_code_cell('number = 1   # a number', metadata={'tags': ['parameters']}),
                      *(nbformat.v4.new_code_cell(source) for source in cells)]
        (tmp_path / 'kept').mkdir()
        (tmp_path / 'out').mkdir()
        nbformat.write(book, tmp_path / 'kept' / 'book.ipynb')
        process = subprocess.Popen([sys.executable, '-c', EXECUTE], cwd=tmp_path, text=True, start_new_session=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env={**os.environ, 'PYTHONPATH': str(ROOT)})
        started.append(process)
        return process
    yield start
    for process in started:
        process.kill()
        process.communicate()


def _left(tmp_path):
    return sorted(path.name for path in (tmp_path / 'out').iterdir())


def test_a_kernel_is_not_interrupted_after_its_last_cell(executing, tmp_path):
    """It would say "KeyboardInterrupt caught in kernel", where it is still sending its last reply."""
    process = executing("""
from pathlib import Path
get_ipython().kernel.saved_sigint_handler = lambda *_: Path('../interrupted').touch()   # of an idle kernel
print('here')""")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (0, 'here\n', '')
    assert not (tmp_path / 'interrupted').exists()
    assert _left(tmp_path) == ['book.ipynb']


def test_an_interrupted_notebook_ends_in_one_line_and_its_cell_may_clean_up(executing, tmp_path):
    process = executing(WAITING)
    assert process.stdout.readline() == 'waiting\n'
    os.killpg(process.pid, signal.SIGINT)   # Ctrl-C
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, 'interrupted\n')
    assert (tmp_path / 'ended').exists()
    assert _left(tmp_path) == []


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_notebook_leaves_no_half_output_and_no_kernel(executing, tmp_path, number):
    process = executing('import os\nfrom pathlib import Path\nPath("../kernel").write_text(str(os.getpid()))', WAITING)
    assert process.stdout.readline() == 'waiting\n'
    os.killpg(process.pid, number)
    process.communicate(timeout=60)
    assert process.returncode == -number
    assert _left(tmp_path) == []
    kernel = int((tmp_path / 'kernel').read_text())
    until = time.monotonic() + 20
    while time.monotonic() < until and _runs(kernel):
        time.sleep(0.2)
    assert not _runs(kernel)


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
