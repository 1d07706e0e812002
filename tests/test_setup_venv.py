"""setup_venv.py: it touches only what it made, and loses no environment; nothing is downloaded here."""
import subprocess
import sys

import pytest

from amdlib import setup_venv
from amdlib.setup_venv import DONE, MARK, aside, remove, setup, wanted_digest


@pytest.fixture
def commands(monkeypatch):
    """What would be run; `commands.failing`: the word whose command fails."""
    class Commands(list):
        failing = None
    asked = Commands()

    def run(words, check):
        words = list(map(str, words))
        asked.append(words)
        assert check
        if asked.failing in words:
            raise subprocess.CalledProcessError(1, words)
        if words[1:3] == ['-m', 'venv']:
            python = setup_venv.Path(words[3]) / 'bin' / 'python'
            python.parent.mkdir(parents=True)
            python.write_text('new')
    monkeypatch.setattr(setup_venv.subprocess, 'run', run)
    return asked


@pytest.fixture
def folder(tmp_path):
    return tmp_path / 'venv'


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob('*') if path.is_file()}


def made(folder, content='old', done='older'):
    """An environment of an earlier call."""
    (folder / 'bin').mkdir(parents=True)
    (folder / 'bin' / 'python').write_text(content)
    (folder / MARK).touch()
    (folder / DONE).write_text(done)


def test_pinned_packages_with_hashes_then_the_kit_and_the_mark_last(folder, commands):
    setup(folder)
    venv, packages, kit = commands
    assert venv == [sys.executable, '-m', 'venv', str(folder)]
    for flag in ('--require-hashes', '--only-binary', ':all:', '--no-deps', str(setup_venv.ROOT / 'requirements.lock')):
        assert flag in packages
    assert kit[-2:] == ['--editable', str(setup_venv.ROOT)]
    assert '--no-build-isolation' in kit
    assert (folder / DONE).read_text().strip() == wanted_digest()
    assert not aside(folder).exists()


def test_other_file_times_alone_change_nothing(folder, commands):
    made(folder, done=wanted_digest())
    before = (folder / DONE).stat().st_mtime_ns
    setup(folder)
    assert commands == []
    assert (folder / DONE).stat().st_mtime_ns > before      # so that make asks no more


def test_another_lock_makes_it_anew(folder, commands):
    made(folder)
    setup(folder)
    assert files(folder)['bin/python'] == 'new'
    assert not aside(folder).exists()


@pytest.mark.parametrize('failing', ['venv', '--require-hashes', '--editable'])
def test_the_old_environment_comes_back_where_the_new_one_fails(folder, commands, failing):
    made(folder)
    before = files(folder)
    commands.failing = failing
    with pytest.raises(subprocess.CalledProcessError):
        setup(folder)
    assert files(folder) == before
    assert not aside(folder).exists()
    commands.failing = None
    setup(folder)
    assert files(folder)['bin/python'] == 'new'


def test_a_first_call_that_fails_leaves_nothing(folder, commands):
    commands.failing = '--require-hashes'
    with pytest.raises(subprocess.CalledProcessError):
        setup(folder)
    assert not folder.exists()


@pytest.mark.parametrize('half', [{}, {MARK: ''}, {MARK: '', 'bin/python': 'half'}])
def test_the_old_environment_comes_back_after_a_kill(folder, commands, half):
    made(aside(folder), done=wanted_digest())
    for name, text in half.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    setup(folder)
    assert files(folder)['bin/python'] == 'old'     # and it is what would be made
    assert commands == []


def test_a_kill_after_the_end_leaves_the_new_one(folder, commands):
    made(folder, 'new', wanted_digest())
    made(aside(folder))
    setup(folder)
    assert files(folder)['bin/python'] == 'new'


@pytest.mark.parametrize('act', [setup, remove])
@pytest.mark.parametrize('content', [{'thesis.tex': 'x'}, {'bin/python': 'of another venv', 'pyvenv.cfg': ''}])
def test_a_folder_that_it_did_not_make_is_left_alone(folder, commands, content, act):
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    with pytest.raises(SystemExit, match='venv was not made by this kit, so it is left alone: choose another VENV'):
        act(folder)
    assert files(folder) == content
    assert commands == []


@pytest.mark.parametrize('act', [setup, remove])
def test_a_link_or_a_file_is_left_alone(folder, tmp_path, commands, act):
    made(tmp_path / 'elsewhere')
    folder.symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(SystemExit, match='no folder of its own'):
        act(folder)
    folder.unlink()
    folder.write_text('mine')
    with pytest.raises(SystemExit, match='no folder of its own'):
        act(folder)
    assert folder.read_text() == 'mine'
    assert files(tmp_path / 'elsewhere')['bin/python'] == 'old'


def test_condas_environment_gets_the_packages_and_loses_nothing(folder, commands):
    (folder / 'conda-meta').mkdir(parents=True)
    (folder / 'mine').write_text('kept')
    setup(folder)
    assert [words[1:3] for words in commands] == [['-m', 'pip']] * 2
    assert (folder / 'mine').read_text() == 'kept'


def test_removing_takes_what_was_made_and_what_was_put_aside(folder, commands):
    made(folder)
    made(aside(folder))
    remove(folder)
    assert not folder.exists()
    assert not aside(folder).exists()
    remove(folder)      # nothing there is no error


def test_a_failure_is_told_in_a_line(folder, commands, monkeypatch):
    commands.failing = '--require-hashes'
    monkeypatch.setattr(sys, 'argv', ['setup_venv.py', str(folder)])
    with pytest.raises(SystemExit) as ended:
        setup_venv.main()
    assert ended.value.code.endswith(f'failed (status 1), see above; {folder} is as it was before')
    monkeypatch.setattr(setup_venv, 'LEAST', (9, 9))
    with pytest.raises(SystemExit, match='the kit needs 9.9 or newer'):
        setup_venv.main()


def test_an_environment_without_gpu_packages_is_refused_and_nothing_touched(folder, commands, monkeypatch):
    """No lock for it could be made and tried."""
    made(folder)
    before = files(folder)
    monkeypatch.setattr(sys, 'argv', ['setup_venv.py', '--cpu', str(folder)])
    with pytest.raises(SystemExit, match='^error: CPU=1: no lock without GPU packages .* nothing was changed') as ended:
        setup_venv.main()
    assert '\n' not in ended.value.code
    assert files(folder) == before
    assert commands == []
