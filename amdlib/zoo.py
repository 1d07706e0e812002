"""Published weights: found in a folder of the user's, the cache, a mirror or at their original address.

A published file is known by its name, which ends in the first digits of its SHA-256 (`...-366f5af1.pth`). Wherever it
comes from, it counts only with those digits.

    AMD_WEIGHTS   folders with files that are there already (separated as in PATH)
    AMD_CACHE     where downloads are kept; default: data/weights/ of the kit
    AMD_MIRRORS   more places to fetch from, separated by commas or blanks: base URLs, file:// URLs or folders

Below a folder or a mirror a file may lie flat, or at the path that it has on its original host; its name may have '+'
for '%2B'.
"""
from __future__ import annotations

import errno
import functools
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import requests
import torch
from filelock import FileLock, Timeout
from mmengine.runner.checkpoint import get_external_models, get_torchvision_models
from tqdm import tqdm

from amdlib.weights import WeightsError, sha256

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = (10, 60)    # to connect; between two pieces of the answer
TRIES = 4               # broken connections in a row, each without a new byte, before the next place is tried
PAUSE_S = 2.0           # between them
PIECE_BYTES = 1 << 20
LINE_EVERY_S = 20


class ZooError(WeightsError):
    """Published weights are not to be had, or a file is not what its name says; the message says what to do."""


class _Unusable(Exception):
    """One place has no usable file; the text says why."""


# ---- names ------------------------------------------------------------------------------------------------------

def digits(name: str | Path) -> str | None:
    """The hex digits of the SHA-256 that a file name ends in, such as 0676ba61 of resnet50-0676ba61.pth; None where it
    has none (a date is none)."""
    found = re.search(r'-([0-9a-f]{8,64})\.(?:pth|pt)$', Path(name).name)
    if found is None or _is_date(found[1]):
        return None
    return found[1]


def _is_date(text: str) -> bool:
    try:
        return len(text) == 8 and 1990 <= datetime.strptime(text, '%Y%m%d').year < 2100
    except ValueError:
        return False


def file_name(url: str) -> str:
    """The last part of an address, as it stands there (with '%2B')."""
    return urlsplit(url).path.rpartition('/')[2]


@functools.cache
def address(checkpoint: str) -> str:
    """Where `torchvision://resnet50` or `open-mmlab://resnext101_64x4d` of mmdet's configs lies; a URL stays as it is.

    Source: mmengine's own lists. Errors: ZooError for a name that is in none.
    """
    scheme, _, name = checkpoint.partition('://')
    if scheme in ('http', 'https'):
        return checkpoint
    lists = {'torchvision': get_torchvision_models, 'open-mmlab': get_external_models}
    known = lists[scheme]() if scheme in lists else {}
    if name not in known:
        raise ZooError(f'{checkpoint}: expected a URL, torchvision://NAME or open-mmlab://NAME with a name that '
                       'mmengine knows')
    return known[name]


# ---- finding ----------------------------------------------------------------------------------------------------

def find(url: str, say: Callable[[str], None] = print) -> Path:
    """The published file of this address, with the right digits: from AMD_WEIGHTS, the cache (this kit's, then
    torch's), AMD_MIRRORS, or the address itself; what is fetched is kept in the cache.

    Errors: ZooError for a file in AMD_WEIGHTS whose content is not what its name says, for a full disk, and where no
    place has the file: the message lists all that were tried, and where to put it.
    """
    name, tried = file_name(url), []
    for folder in weights_folders():
        if found := in_folder(folder, url):
            return check(found)
        tried.append(f'AMD_WEIGHTS: not in {folder}')
    cache = cache_folder()
    for folder in (cache, Path(torch.hub.get_dir()) / 'checkpoints'):
        found = in_folder(folder, url)
        if found and _fits(found, name):
            return found
        tried.append(f'cache: {found} has other digits, ignored' if found else f'cache: not in {folder}')
    with _lock(cache, name, say):
        if (found := cache / name).is_file() and _fits(found, name):
            return found    # another process has fetched it meanwhile
        for place in (*mirrors(), None):
            if place is None or '://' in place:
                for address_there in ([url] if place is None else _addresses(place, url)):
                    try:
                        return _download(address_there, name, cache, say)
                    except _Unusable as why:
                        tried.append(f'{"original" if place is None else "mirror"}: {address_there}: {why}')
            elif (found := in_folder(Path(place), url)) and _fits(found, name):
                return found
            else:
                tried.append(f'mirror: {found} has other digits' if found else f'mirror: not in {place}')
    variant = f' (or {unquote(name)})' if unquote(name) != name else ''
    raise ZooError(
        f'{name} was not found; its SHA-256 begins with {digits(name)}. Tried:\n'
        + ''.join(f'  {line}\n' for line in tried)
        + f'Get the file elsewhere and put it, as {name}{variant}, into {cache} or into a folder that AMD_WEIGHTS '
          'names (make: WEIGHTS=); or name a mirror in AMD_MIRRORS')


def in_folder(folder: Path, url: str) -> Path | None:
    """The file of this address below a folder, flat or at its original path, with '%2B' or '+'; None if it is not."""
    path = urlsplit(url).path.lstrip('/')
    candidates = (path.rpartition('/')[2], path)
    return next((folder / name for candidate in candidates for name in (candidate, unquote(candidate))
                 if (folder / name).is_file()), None)


def check(path: Path, say: Callable[[str], None] | None = None) -> Path:
    """The path of a file that a user gave, if it has the digits that its name ends in.

    A name without digits is accepted, and said so. Errors: ZooError naming both digests.
    """
    wanted = digits(path)
    if wanted is None:
        if say:
            say(f'{path}: its name carries no hash, so its content was not checked')
        return path
    if not _fits(path, path.name):
        raise ZooError(f'{path} ({path.stat().st_size} bytes) is damaged or another file: its SHA-256 begins with '
                       f'{sha256(path)[:len(wanted)]}, its name says {wanted}')
    return path


def weights_folders() -> list[Path]:
    """The folders of AMD_WEIGHTS. Errors: ZooError for one that does not exist."""
    folders = [Path(folder).expanduser() for folder in os.environ.get('AMD_WEIGHTS', '').split(os.pathsep) if folder]
    for folder in folders:
        if not folder.is_dir():
            raise ZooError(f'AMD_WEIGHTS={folder}: no such folder')
    return folders


def environment() -> dict[str, str]:
    """The variables that are set, with absolute paths, for a process in another folder."""
    places = [entry if '://' in entry else Path(entry).absolute().as_uri() for entry in mirrors()]
    found = {'AMD_WEIGHTS': os.pathsep.join(map(os.path.abspath, weights_folders())),
             'AMD_CACHE': os.path.abspath(cache_folder()), 'AMD_MIRRORS': ','.join(places)}
    return {name: value for name, value in found.items() if os.environ.get(name)}


def cache_folder() -> Path:
    """Where downloads are kept."""
    return Path(os.environ.get('AMD_CACHE') or ROOT / 'data' / 'weights').expanduser()


def mirrors() -> list[str]:
    """The entries of AMD_MIRRORS: URLs, or paths of folders for file:// URLs."""
    entries = [entry.rstrip('/') for entry in re.split(r'[\s,]+', os.environ.get('AMD_MIRRORS', '')) if entry]
    return [unquote(urlsplit(entry).path) if entry.startswith('file://') else entry for entry in entries]


def _addresses(base: str, url: str) -> list[str]:
    """Where a mirror may have the file: at the original path, or flat; in the latter case also stored with '%2B'."""
    path, name = urlsplit(url).path, file_name(url)
    return list(dict.fromkeys([f'{base}{path}', f'{base}/{name}', f'{base}/{quote(name)}']))


def _fits(path: Path, name: str) -> bool:
    return sha256(path).startswith(digits(name))


@contextmanager
def _lock(cache: Path, name: str, say) -> Iterator[None]:
    """One process at a time fetches a file; the system frees the lock of a process that was killed."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache / f'.{name}.lock')
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f'{name}: waiting for another process that fetches it')
            lock.acquire()
    except OSError as error:
        raise _cannot_write(cache, error) from None
    try:
        yield
    finally:
        lock.release()


def _cannot_write(path: Path, error: OSError) -> ZooError:
    return ZooError(f'{path}: cannot be written ({error.strerror}); name another cache folder in AMD_CACHE')


# ---- fetching ---------------------------------------------------------------------------------------------------

def _download(url: str, name: str, cache: Path, say) -> Path:
    """Fetch into `<name>.part`, going on where an earlier attempt broke off, and rename once the digits are right.

    Errors: _Unusable where this address does not give the file; ZooError for a full disk.
    """
    part = cache / f'{name}.part'
    failures, answered, afresh = 0, False, not _size(part)
    if not afresh and _fits(part, name):    # killed just before it was renamed
        return _keep(part, cache / name, say)
    while True:
        had = _size(part)
        try:
            _receive(url, part, say)
        except requests.RequestException as error:
            progress = _size(part) > had
            answered, failures = answered or progress, 1 if progress else failures + 1
            if not answered or failures >= TRIES:
                raise _Unusable(_reason(error)) from None
            say(f'{name}: the connection broke after {_mb(_size(part))} ({_reason(error)}); going on')
            time.sleep(PAUSE_S)
            continue
        if _fits(part, name):
            return _keep(part, cache / name, say)
        found = sha256(part)[:len(digits(name))]
        part.unlink()
        _notes(part).unlink(missing_ok=True)
        if afresh:
            raise _Unusable(f'what came has a SHA-256 that begins with {found}, not {digits(name)}')
        afresh = True    # the first part may have been another file's: once more, from its beginning
        say(f'{name}: the parts of two downloads do not make the right file; starting afresh')


def _keep(part: Path, path: Path, say) -> Path:
    os.replace(part, path)
    _notes(part).unlink(missing_ok=True)
    say(f'{path.name}: fetched into {path.parent}, its hash is right')
    return path


def _receive(url: str, part: Path, say) -> None:
    """Append to `part` what it lacks. It starts afresh where the server ignores the range or has another file now."""
    have = _size(part)
    headers = {'Accept-Encoding': 'identity', **({'Range': f'bytes={have}-'} if have else {})}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as answer:
        if have and answer.status_code == 206 and _same_file(answer, part, url, have):
            total = have + _length(answer)
        elif answer.status_code in (206, 416):
            part.unlink()
            return _receive(url, part, say)
        elif answer.status_code != 200:
            raise _Unusable(f'the server answers {answer.status_code} {answer.reason}')
        elif answer.headers.get('Content-Type', '').startswith('text/html'):
            raise _Unusable('the server answers with a web page')
        else:
            have, total = 0, _length(answer)
            part.unlink(missing_ok=True)
        _check_room(part, total, have)
        try:
            _notes(part).write_text(json.dumps({'url': url, 'etag': answer.headers.get('ETag'), 'bytes': total}))
            with open(part, 'ab') as file:
                for piece in _with_progress(answer.iter_content(PIECE_BYTES), part.name.removesuffix('.part'), have,
                                            total, say):
                    file.write(piece)
        except requests.RequestException:  # an OSError too
            raise
        except OSError as error:
            raise (_disk_full(part, total, _size(part)) if error.errno in (errno.ENOSPC, errno.EDQUOT) else
                   _cannot_write(part, error)) from None


def _same_file(answer: requests.Response, part: Path, url: str, have: int) -> bool:
    """Whether an answer of 206 continues what `part` began: right place, same length, and no other ETag."""
    place = re.fullmatch(r'bytes (\d+)-\d+/(\d+)', answer.headers.get('Content-Range', ''))
    try:
        began = json.loads(_notes(part).read_text())
    except (OSError, ValueError):
        return False
    return (place is not None and int(place[1]) == have and int(place[2]) == began['bytes']
            and (began['url'] != url or began['etag'] == answer.headers.get('ETag')))


def _notes(part: Path) -> Path:
    """What is known of the file that a part belongs to."""
    return part.with_name(f'{part.name}.json')


def _length(answer: requests.Response) -> int:
    length = answer.headers.get('Content-Length', '')
    return int(length) if length.isdigit() else 0


def _check_room(part: Path, total: int, have: int) -> None:
    if shutil.disk_usage(part.parent).free < total - have:
        raise _disk_full(part, total, have)


def _disk_full(part: Path, total: int, have: int) -> ZooError:
    return ZooError(f'{part.parent}: the disk is too full for {part.name.removesuffix(".part")}: {total - have} bytes '
                    f'are needed, {shutil.disk_usage(part.parent).free} are free; make room, or name a cache folder on '
                    'another disk in AMD_CACHE')


def _with_progress(pieces: Iterator[bytes], name: str, have: int, total: int, say) -> Iterator[bytes]:
    """A bar on a terminal, a line now and then in a log."""
    on_terminal = sys.stderr.isatty()
    said_s = time.monotonic()
    if not on_terminal:
        say(f'{name}: fetching {_mb(total - have)}' + (f', {_mb(have)} are here already' if have else ''))
    with tqdm(total=total or None, initial=have, desc=name[-40:], unit='B', unit_scale=True,
              disable=not on_terminal) as bar:
        for piece in pieces:
            have += len(piece)
            bar.update(len(piece))
            if not on_terminal and time.monotonic() - said_s > LINE_EVERY_S:
                said_s = time.monotonic()
                say(f'{name}: {_mb(have)} of {_mb(total)}')
            yield piece


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _mb(count: int) -> str:
    return f'{count / 1e6:.1f} MB'


def _reason(error: Exception) -> str:
    """requests wraps an error several times; the innermost has the words that help."""
    text = ' '.join(str(error).split())
    words = re.findall(r'(?:Failed to resolve[^()]*|\[Errno -?\d+\] [^\'")]+|timed out|Connection broken[^()]*)', text)
    return f'cannot be reached: {words[-1].strip()}' if words else f'{type(error).__name__}: {text[:160]}'
