"""Make the kit's virtual environment: `python -I amdlib/setup_venv.py FOLDER`, as `make setup` does. Needs nothing but
Python's own library, since nothing else is there yet.

It touches only an environment that it made itself (`MARK`) or one of conda. The old one is put aside while the new one
is made and comes back where that fails; where neither requirements.lock nor pyproject.toml has changed in content,
nothing is made at all.
"""
import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARK, DONE = '.made-by-amd-kit', '.setup-done'      # the latter holds the digest of what was installed
LEAST = (3, 11)
SIZE = 'about 4 GB to download, 6.5 GB of disk'
# wheels without GPU packages have an index of their own, which was not within reach where the lock was made
NO_CPU = (f'error: CPU=1: no lock without GPU packages could be made and tried yet, so nothing was changed; without '
          f'CPU=1, make setup works on a machine without a GPU too ({SIZE})')
PIP = ['-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', '--no-deps']


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0])
    parser.add_argument('folder', type=Path)
    parser.add_argument('--remove', action='store_true', help='remove it instead')
    parser.add_argument('--cpu', action='store_true', help='without GPU packages: it says why that cannot be had')
    given = parser.parse_args()
    if given.cpu:
        sys.exit(NO_CPU)
    folder = Path(os.path.abspath(given.folder))
    try:
        remove(folder) if given.remove else setup(folder)
    except subprocess.CalledProcessError as error:
        sys.exit(f'error: {" ".join(map(str, error.cmd[:5]))} ... failed (status {error.returncode}), see above; '
                 f'{folder} is as it was before')


def setup(folder):
    """Make the environment, or leave it as it is where it is what would be made."""
    check_python()
    _restore(folder)
    wanted = wanted_digest()
    if (folder / DONE).is_file() and (folder / DONE).read_text().strip() == wanted:
        (folder / DONE).touch()     # its inputs are newer by their times alone
        return
    conda = (folder / 'conda-meta').is_dir()
    if not conda:
        check_ours(folder)
    print(f'setting up {folder}: {SIZE}, a few minutes', flush=True)
    if conda:
        install(folder, wanted)
        return
    old = aside(folder)
    if folder.exists():
        folder.rename(old)
    try:
        subprocess.run([sys.executable, '-m', 'venv', str(folder)], check=True)
        (folder / MARK).touch()
        install(folder, wanted)
    except BaseException:
        _restore(folder, failed=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove(folder):
    """Remove an environment that was made here."""
    check_ours(folder)
    for one in (folder, aside(folder)):
        if one.exists():
            shutil.rmtree(one)


def install(folder, wanted):
    """The pinned packages, each with its hash, then the kit itself; the mark that it is done comes last."""
    python = folder / 'bin' / 'python'
    subprocess.run([python, *PIP, '--only-binary', ':all:', '--require-hashes', '-r', ROOT / 'requirements.lock'],
                   check=True)
    subprocess.run([python, *PIP, '--no-build-isolation', '--editable', ROOT], check=True)
    (folder / DONE).write_text(wanted + '\n')


def wanted_digest():
    """Of what is installed, and by which Python."""
    digest = hashlib.sha256(f'{sys.executable} {sys.version}'.encode())
    for name in ('requirements.lock', 'pyproject.toml'):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()[:16]


def check_python():
    """It ends where this Python is too old or lacks a part."""
    if sys.version_info < LEAST:
        raise SystemExit(f'error: {sys.executable} is Python {sys.version_info[0]}.{sys.version_info[1]}; the kit '
                         f'needs {LEAST[0]}.{LEAST[1]} or newer: make setup PYTHON=python3.12')
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        raise SystemExit(f'error: {sys.executable} lacks venv or ensurepip (Debian, Ubuntu: apt install '
                         'python3-venv)') from None


def check_ours(folder):
    """It ends for a folder with something in it that was not made here."""
    if folder.is_symlink() or folder.exists() and not folder.is_dir():
        raise SystemExit(f'error: {folder} is no folder of its own: choose another VENV')
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).is_file() for name in (MARK, DONE)):
        raise SystemExit(f'error: {folder} was not made by this kit, so it is left alone: choose another VENV, such as '
                         f'{folder.with_name(folder.name + "-amd")}')


def aside(folder):
    """Where the old environment lies while a new one is made."""
    return folder.with_name(folder.name + '.old')


def _restore(folder, failed=False):
    """Put an old environment back whose successor was not finished, in this call or in one that was killed."""
    old = aside(folder)
    if not failed and (not old.exists() or (folder / DONE).is_file()):
        return
    if folder.exists() and (failed or (folder / MARK).is_file() or not any(folder.iterdir())):
        shutil.rmtree(folder)
    if old.exists() and (old / DONE).is_file() and not folder.exists():
        old.rename(folder)


if __name__ == '__main__':
    main()
