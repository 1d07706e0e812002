"""Six of the kills that `make torture` goes through all, a fault of each other kind that a process can be done; and
that the hook counts what it should."""
import json
import os
import re
import subprocess
import sys

import nbformat
import pytest

from amdlib.files import ROOT

from .run import HERE, Fault, kills, tortured, undisturbed

KILLS = 6


@pytest.fixture(scope='module')
def calm(tmp_path_factory):
    """Points and result of a run that nobody disturbs."""
    return undisturbed(tmp_path_factory.mktemp('calm') / 'run')


@pytest.mark.slow
def test_every_kind_of_change_is_a_point(calm):
    names, (_, other) = calm
    assert other == []
    assert {name.split()[0] for name in names} == {'mkdir', 'replace', 'rename', 'unlink', 'open', 'rmdir', 'create'}
    for file in ('record.json', 'weights.pth', 'detections.json.gz', 'unfinished.json', 'epoch_1.pth', 'scalars.jsonl',
                 'features.npy', 'progress.json', 'manifest.json'):
        assert any(name.startswith('replace') and name.endswith(file) for name in names), file
    for file in ('weights.pth', 'epoch_1.pth'):     # torch writes into a file that Python has opened
        assert any(re.search(rf'^open wb .*/\.{file}\.\d+$', name) for name in names), file
    assert len(names) > 100


@pytest.mark.slow
def test_the_hook_reaches_the_kernel_of_a_notebook(tmp_path):
    here, log, notebook = tmp_path / 'here', tmp_path / 'points', tmp_path / 'writes.ipynb'
    here.mkdir()
    cells = [nbformat.v4.new_code_cell("folder = ''", metadata={'tags': ['parameters']}), nbformat.v4.new_code_cell(
        'import shutil\nfrom amdlib.files import write_json\nwrite_json(f"{folder}/deep.json", {})\n'
        'os = __import__("os")\nos.makedirs(f"{folder}/a/b")\nshutil.rmtree(f"{folder}/a")')]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={'kernelspec': {
        'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}}), notebook)
    asked = {'folder': str(here), 'log': str(log), 'at': 0, 'after': False, 'how': ''}
    subprocess.run([sys.executable, '-c', 'import sys; from pathlib import Path; from amdlib.runs.notebooks import '
                    'execute; execute(Path(sys.argv[1]), Path(sys.argv[2]), {"folder": sys.argv[3]})',
                    notebook, tmp_path / 'executed.ipynb', here], check=True, timeout=120, env={
                        **os.environ, 'PYTHONPATH': os.pathsep.join([str(HERE), str(ROOT)]),
                        'TORTURE': json.dumps(asked)})
    names = [re.sub(r'\.\d+$', '', line.split(' ', 1)[1]) for line in log.read_text().splitlines()]
    assert names == ['open wb .deep.json', 'replace deep.json', 'unlink .deep.json', 'mkdir a', 'mkdir a/b',
                     'rmdir a/b', 'rmdir a']


@pytest.mark.slow
@pytest.mark.parametrize('which', range(KILLS))
def test_a_kill_at_a_change_of_a_file_costs_nothing(calm, tmp_path, which):
    names, (wanted, _) = calm
    fault = kills(names, KILLS)[which]
    assert tortured(tmp_path / 'run', fault, wanted) == '', f'{fault} {names[fault.at - 1]}'


@pytest.mark.slow
@pytest.mark.parametrize('how', ['SIGTERM', 'SIGINT', 'full', 'remove data'])
def test_other_harm_is_told_in_a_line_and_costs_nothing(calm, tmp_path, how):
    names, (wanted, _) = calm
    fault = Fault(how, len(names) // 2)
    assert tortured(tmp_path / 'run', fault, wanted) == '', f'{fault} {names[fault.at - 1]}'
