"""What is installed, on what machine, and what is missing. Needs Python's own library alone."""
from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = {'torch': 'torch', 'torchvision': 'torchvision', 'mmcv': 'mmcv-lite', 'mmengine': 'mmengine', 'mmdet': 'mmdet',
          'pycocotools': 'pycocotools', 'cv2': 'opencv-python-headless', 'numpy': 'numpy', 'scipy': 'scipy',
          'pandas': 'pandas', 'matplotlib': 'matplotlib', 'papermill': 'papermill', 'jupyterlab': 'jupyterlab',
          'ipykernel': 'ipykernel', 'ipywidgets': 'ipywidgets', 'anywidget': 'anywidget',
          'nbformat': 'nbformat', 'nbconvert': 'nbconvert',
          'latex2mathml': 'latex2mathml', 'tabulate': 'tabulate', 'tqdm': 'tqdm', 'filelock': 'filelock',
          'psutil': 'psutil', 'yaml': 'pyyaml',
          'pkg_resources': 'setuptools'}  # mmengine reads mmdet:: configs through it; setuptools >= 81 has it no more
GIB = 2 ** 30


def examine() -> int:
    """Say what is there and what is missing; exit status 1 where something needed is missing."""
    _say('python', f'{sys.version.split()[0]} ({sys.executable})')
    _say('checkout', checkout(ROOT))
    missing = [package for module, package in NEEDED.items() if not _found(module, package)]
    _say('CPU', f'{cpu_model()}, {len(os.sched_getaffinity(0))} cores for this process')
    _say('memory', memory())
    _say('disk', ', '.join(f'{shutil.disk_usage(folder).free / GIB:.1f} GiB free at {folder}'
                           for folder in _different_disks(ROOT / 'results', ROOT / 'data', Path('/tmp'))))
    if 'torch' not in missing:
        import torch
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        built = f'torch is built for CUDA {torch.version.cuda}' if torch.version.cuda else 'torch is a CPU build'
        _say('GPU', f'{", ".join(gpus) or "none visible"} ({built})')
        _say('threads', str(torch.get_num_threads()))
    if not {'torch', 'torchvision', 'mmcv-lite'} & set(missing):
        from amdlib import mmcv_ext
        _say('operators', mmcv_ext.backend())
    if missing:
        print(f'\nmissing: {", ".join(missing)}\nmend it: make setup (or: pip install --no-deps -r requirements.lock)')
        return 1
    print('\nnothing is missing')
    return 0


def _say(what: str, text: str) -> None:
    print(f'{what:22} {text}')


def _found(module: str, package: str) -> bool:
    """Import a module and say its package's version, or that it is missing."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
            if module == 'mmdet':  # needs the operators in place
                importlib.import_module('amdlib.mmcv_ext')
            importlib.import_module(module)
        _say(package, metadata.version(package))
    except Exception as error:  # a broken package is as good as a missing one
        told = str(error).splitlines()
        _say(package, f'MISSING: {type(error).__name__}: {told[0] if told else ""}')
        return False
    return True


def checkout(root: Path) -> str:
    """The commit that stands there, and whether its sources were changed since: `1a2b3c4 of 2026-05-01, clean`."""
    def git(*words: str) -> str:
        return subprocess.run(['git', '-C', str(root), *words], capture_output=True, text=True, check=True).stdout
    try:
        commit = git('log', '-1', '--format=%h of %cs').strip()
        changed = git('status', '--porcelain', '--', 'amdlib', 'requirements.lock').splitlines()
    except (OSError, subprocess.CalledProcessError):
        return 'no git checkout: records will not say which commit made them'
    if not changed:
        return f'{commit}, clean'
    names = ', '.join(line[3:] for line in changed[:3]) + (' ...' if len(changed) > 3 else '')
    return f'{commit}, {len(changed)} changed in amdlib/ or requirements.lock ({names}): records will say so'


def cpu_model() -> str:
    """As Linux names it, or what Python knows."""
    for line in _lines('/proc/cpuinfo'):
        name, _, value = line.partition(':')
        if name.strip() == 'model name':
            return value.strip()
    return platform.processor() or platform.machine()


def memory() -> str:
    """How much there is, how much of it is free, and a container's limit where that is lower."""
    words = [line.split() for line in _lines('/proc/meminfo')]
    kib = {name.rstrip(':'): int(number) for name, number, *_ in words if number.isdigit()}
    if not {'MemTotal', 'MemAvailable'} <= kib.keys():
        return 'not told by this system'
    total_bytes = kib['MemTotal'] * 1024
    told = f'{total_bytes / GIB:.1f} GiB, {kib["MemAvailable"] * 1024 / GIB:.1f} GiB available'
    limits = [int(line) for file in ('/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes')
              for line in _lines(file) if line.isdigit()]
    return told + ''.join(f', limited to {limit / GIB:.1f} GiB' for limit in limits if limit < total_bytes)


def _lines(file: str) -> list[str]:
    try:
        return Path(file).read_text().splitlines()
    except OSError:
        return []


def _different_disks(*folders: Path) -> list[Path]:
    """One folder a disk, each the first that is there at or above those given."""
    found = {}
    for folder in folders:
        there = next(one for one in (folder, *folder.parents) if one.is_dir())
        found.setdefault(there.stat().st_dev, there)
    return list(found.values())
