"""doctor.py: what is there, what is missing and how to mend it; also where next to nothing is installed."""
import os
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from amdlib import doctor
from amdlib.files import ROOT


def test_it_reports_versions_machine_and_checkout(capsys):
    assert doctor.examine() == 0
    lines = capsys.readouterr().out.splitlines()
    told = {line[:22].strip(): line[23:] for line in lines}
    assert lines[-1] == 'nothing is missing'
    assert told['python'].startswith(sys.version.split()[0])
    assert all(re.match(r'\d', told[package]) for package in doctor.NEEDED.values())
    assert re.search(r'torchvision .* kernels|mmcv', told['operators'])
    assert re.fullmatch(r'.+, \d+ cores for this process', told['CPU'])
    assert re.match(r'[\d.]+ GiB, [\d.]+ GiB available', told['memory'])
    assert re.match(r'[\d.]+ GiB free at /', told['disk'])
    assert 'GPU' in told
    assert re.match(r'[0-9a-f]{7,} of \d{4}-\d\d-\d\d, |no git checkout', told['checkout'])


def test_every_dependency_is_looked_for():
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    assert {Requirement(text).name for text in project['dependencies']} == set(doctor.NEEDED.values())


def test_the_state_of_a_checkout_is_told(tmp_path):
    def git(*words):
        subprocess.run(['git', '-C', tmp_path, '-c', 'user.name=a', '-c', 'user.email=b', *words], check=True,
                       capture_output=True)
    assert doctor.checkout(tmp_path).startswith('no git checkout')
    git('init')
    (tmp_path / 'amdlib').mkdir()
    (tmp_path / 'amdlib' / 'a.py').write_text('1')
    git('add', '.')
    git('commit', '-m', 'one')
    (tmp_path / 'notebook.ipynb').write_text('saved')   # decides nothing
    assert re.fullmatch(r'[0-9a-f]{7,} of \d{4}-\d\d-\d\d, clean', doctor.checkout(tmp_path))
    (tmp_path / 'amdlib' / 'a.py').write_text('2')
    assert ', 1 changed in amdlib/ or requirements.lock (amdlib/a.py)' in doctor.checkout(tmp_path)


def test_a_machine_that_tells_nothing_is_no_error(monkeypatch):
    monkeypatch.setattr(doctor, '_lines', lambda _: [])
    assert doctor.cpu_model()
    assert doctor.memory() == 'not told by this system'


def test_a_containers_limit_is_told(monkeypatch):
    files = {'/proc/meminfo': ['MemTotal: 8388608 kB', 'MemAvailable: 4194304 kB', 'Hugepages: 0'],
             '/sys/fs/cgroup/memory.max': [str(2 * doctor.GIB)]}
    monkeypatch.setattr(doctor, '_lines', lambda file: files.get(file, []))
    assert doctor.memory() == '8.0 GiB, 4.0 GiB available, limited to 2.0 GiB'


WITHOUT = """
import importlib.machinery, runpy, sys
plain = importlib.machinery.PathFinder
gone = {gone!r}

class Without(plain):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.partition('.')[0]
        if top in gone or gone == ('all',) and top not in sys.stdlib_module_names and top != 'amdlib':
            return None
        return plain.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(plain)] = Without
sys.argv = ['amdlib', 'doctor']
runpy.run_module('amdlib', run_name='__main__')
"""


@pytest.mark.slow
@pytest.mark.parametrize(('gone', 'packages'), [
    (('pycocotools',), ['pycocotools']), (('torch',), ['torch', 'mmdet']), (('mmcv',), ['mmcv-lite']),
    (('filelock',), ['filelock']), (('all',), list(doctor.NEEDED.values()))])
def test_it_says_what_is_missing_and_how_to_mend_it(gone, packages):
    ended = subprocess.run([sys.executable, '-c', WITHOUT.format(gone=gone)], cwd=ROOT, capture_output=True, text=True,
                           timeout=120, env=dict(os.environ))
    assert ended.returncode == 1, ended.stderr
    assert 'Traceback' not in ended.stderr
    for package in packages:
        assert re.search(rf'^{package} +MISSING: ', ended.stdout, re.MULTILINE)
        assert package in re.search(r'^missing: (.*)$', ended.stdout, re.MULTILINE).group(1)
    assert 'make setup' in ended.stdout
    assert 'requirements.lock' in ended.stdout
