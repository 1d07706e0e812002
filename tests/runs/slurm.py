"""Slurm for tests: commands that only note what they are asked, and the real one of ../shared/cluster."""
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import shared

FAKE = {'sbatch': 'sleep "${SBATCH_S:-0}"; number=$(($(ls jobs 2>/dev/null | wc -l) + 12)); mkdir -p jobs; '
                  'mkdir "jobs/$number"; pwd > "jobs/$number/at"; echo "$number;cluster"',
        'squeue': 'cat queue 2>/dev/null; if [ -s refusal ]; then cat refusal >&2; exit 1; fi', 'scontrol': ''}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


class Fake:
    """Its words are kept; `queue(...)` is what squeue says, `refuse` what it fails with."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.folder = folder
        folder.mkdir()
        for name, does in FAKE.items():
            file = folder / name
            file.write_text(f'#!/bin/bash\nhere={shlex.quote(str(folder))}\n'
                            f'printf "%s\\n" "$(printf "%q " {name} "$@")" >> "$here/asked"\ncd "$here"\n{does}\n')
            file.chmod(0o755)
        monkeypatch.setenv('PATH', os.pathsep.join([str(folder), os.environ['PATH']]))

    def asked(self, command: str) -> list[list[str]]:
        """The words that a command was called with."""
        file = self.folder / 'asked'
        lines = [shlex.split(line) for line in file.read_text().splitlines()] if file.is_file() else []
        return [words for word, *words in lines if word == command]

    def queue(self, *lines: str) -> None:
        (self.folder / 'queue').write_text(''.join(f'{line}\n' for line in lines))

    def refuse(self, text: str) -> None:
        (self.folder / 'refusal').write_text(text)


class OneNode:
    """A Slurm that runs on this machine alone."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.script = folder, shared('cluster') / 'slurm_one_node.sh'
        if shutil.which('apt-get') is None:
            pytest.skip('no apt-get, from which the Slurm of ../shared/cluster comes')
        ports = {f'SLURM{name}_PORT': str(free_port()) for name in ('CTLD', 'D')}
        # nproc obeys it: two entries at once, on a machine of one core too
        up = subprocess.run(['bash', self.script, 'up', folder], capture_output=True, text=True, timeout=300,
                            env={**os.environ, **ports, 'OMP_NUM_THREADS': '2'})
        if up.returncode:
            self.down()
            pytest.skip(f'no Slurm here: {up.stderr.strip()[-300:]}')
        told = subprocess.run(['bash', '-c', f'source {shlex.quote(str(folder / "env"))}; env -0'], capture_output=True,
                              text=True, check=True).stdout
        self.environment = dict(line.split('=', 1) for line in told.split('\0') if line)

    def down(self) -> None:
        subprocess.run(['bash', self.script, 'down', self.folder], capture_output=True, timeout=60)

    def use(self, monkeypatch) -> None:
        for name in ('SLURM_CONF', 'PATH', 'LD_LIBRARY_PATH'):
            monkeypatch.setenv(name, self.environment[name])

    def said(self, *words: str) -> str:
        return subprocess.run(words, capture_output=True, text=True, check=True, env=self.environment).stdout

    def kill_controller(self) -> None:
        os.kill(int((self.folder / 'slurmctld.pid').read_text()), signal.SIGKILL)

    def start_controller(self) -> None:
        found = next(file for file in (self.folder / 'root').rglob('slurmctld*') if file.parent.name == 'sbin')
        subprocess.run([found], env=self.environment, check=True, timeout=60)

    def wait_for(self, is_so, limit_s: float) -> None:
        """Until it is so, or fail with what the queue says."""
        began_s = time.monotonic()
        while not is_so():
            if time.monotonic() - began_s > limit_s:
                pytest.fail(self.said('squeue', '--states=all'))
            time.sleep(0.3)
