"""How far a run is: progress.json for others, a line on the terminal, and what another process reads from it."""
from __future__ import annotations

import contextlib
import datetime
import os
import platform
import time
from pathlib import Path
from typing import Any

import psutil

from amdlib.files import read_json, write_json
from amdlib.terminal import SCREEN
from amdlib.words import log, minutes, timestamp

FILE = 'progress.json'
QUIET_S = 60    # after which a run that tells nothing is said to


class ProgressReport:
    """Step, speed and time left: into progress.json, and onto a terminal or a notebook's page (one line rewritten) or
    into a log (a line every `line_every_s`). Called as the engine's `watch`."""

    def __init__(self, folder: Path, run_id: str, line_every_s: float = 20) -> None:
        self.folder, self.run_id, self.line_every_s = folder, run_id, line_every_s
        self.written_s = self.printed_s = 0.0

    def __call__(self, phase: str, step: int, steps: int, s_per_step: float | None = None, **more: Any) -> None:
        now = time.monotonic()
        last = step == steps or phase in ('failed', 'stopped', 'done')
        left_s = None if s_per_step is None else s_per_step * (steps - step)
        if last or now - self.written_s > 1:
            self.written_s = now
            write_json(self.folder / FILE, {
                'phase': phase, 'step': step, 'steps': steps, 's_per_step': s_per_step, 'left_s': left_s,
                'pid': os.getpid(), 'started': psutil.Process().create_time(), 'host': platform.node(),
                'updated': timestamp(), **more})
        if not last and now - self.printed_s < (0.5 if SCREEN.rewrites else self.line_every_s):
            return
        self.printed_s = now
        text = describe(self.run_id, phase, step, steps, s_per_step, left_s)
        if SCREEN.rewrites and not last:
            SCREEN.progress(text)
        else:
            log.info(text)


def describe(run_id: str, phase: str, step: int, steps: int, s_per_step: float | None, left_s: float | None,
             quiet_s: float = 0) -> str:
    """One line of progress: `retinanet-amd-s0 train 120/600, 4.8 steps/s, 1:40 left`, or for how long nothing came."""
    text = f'{run_id} {phase} {step}/{steps}'
    if quiet_s > max(QUIET_S, 10 * (s_per_step or 0)):
        return f'{text}, no step for {minutes(quiet_s)}'
    if s_per_step and left_s is not None:
        speed = f'{1 / s_per_step:.1f} steps/s' if s_per_step < 1 else f'{s_per_step:.1f} s/step'
        text += f', {speed}, {minutes(left_s)} left'
    return text


def read_progress(folder: Path) -> dict[str, Any]:
    """A run's progress.json, or {} where there is none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        found = read_json(folder / FILE)
        if isinstance(found, dict) and all(isinstance(found.get(name), str) for name in ('phase', 'host')) and all(
                _is_number(found.get(name)) for name in ('step', 'steps')) and all(
                found.get(name) is None or _is_number(found[name]) for name in ('s_per_step', 'left_s')):
            return found
    return {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 1e12    # NaN is none


def quiet_s(progress: dict[str, Any]) -> float:
    """Seconds since a run last told how far it is."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        updated = datetime.datetime.fromisoformat(progress['updated'])
        return max(0.0, (datetime.datetime.now(datetime.UTC) - updated).total_seconds())
    return 0.0


def training_process(folder: Path) -> int | None:
    """The process of this machine that is training in this folder; None where there is none."""
    progress = read_progress(folder)
    if progress.get('phase') in (None, 'failed', 'stopped', 'done') or progress['host'] != platform.node():
        return None
    with contextlib.suppress(psutil.Error, KeyError, TypeError, ValueError):
        started = psutil.Process(progress['pid']).create_time()     # numbers of processes are used again
        return progress['pid'] if abs(started - progress['started']) < 1 else None
    return None
