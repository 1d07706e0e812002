"""Published weights: found in a folder of the user's, the cache, a mirror or at their original address.

A published file is known by its name, which ends in the first digits of its SHA-256 (`...-366f5af1.pth`). Wherever it
comes from, it counts only with those digits. Below a folder or a mirror a file may lie flat, or at the path that it has
on its original host; its name may have `+` for `%2B`.
"""
from __future__ import annotations

import contextlib
import errno
import functools
import glob
import http.client
import os
import re
import shutil
import socket
import sys
import time
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from amdlib import files
from amdlib.errors import WeightsError
from amdlib.weights import misfits
from amdlib.words import log

TIMEOUT_S = 60.0   # to connect, and between two pieces of the answer
TRIES = 3       # of one address whose connection breaks, before the next one
PAUSE_S = 2.0   # between them


@dataclass(frozen=True)
class Sources:
    """Where published weights may lie, besides their own address. Paths become absolute, for processes elsewhere.

    Args:
        folders: with files that are there already; a wrong file in them is an error.
        mirrors: more to fetch from: base URLs, `file://` URLs or folders.
        cache: where downloads are kept.
    """
    folders: tuple[Path, ...] = ()
    mirrors: tuple[str, ...] = ()
    cache: Path = files.ROOT / 'data' / 'weights'

    def __post_init__(self) -> None:
        object.__setattr__(self, 'folders', tuple(map(_absolute, self.folders)))
        object.__setattr__(self, 'mirrors', tuple(map(_mirror, self.mirrors)))
        object.__setattr__(self, 'cache', _absolute(self.cache))

    @classmethod
    def of(cls, weights: str | None = None, mirrors: str | None = None, cache: str | None = None) -> Sources:
        """From what is typed: folders separated as in PATH, mirrors by commas or blanks.

        Errors: WeightsError for a folder that does not exist.
        """
        given = {'folders': tuple(folder for folder in (weights or '').split(os.pathsep) if folder),
                 'mirrors': tuple(entry for entry in re.split(r'[\s,]+', mirrors or '') if entry)}
        sources = cls(**given, cache=cache) if cache else cls(**given)
        sources.check_folders()
        return sources

    def check_folders(self) -> None:
        """Errors: WeightsError for a folder that does not exist."""
        for folder in self.folders:
            if not folder.is_dir():
                raise WeightsError(f'WEIGHTS={folder}: no such folder')

    def to_dict(self) -> dict:
        """As JSON can hold it, for a job file."""
        return {'folders': list(map(str, self.folders)), 'mirrors': list(self.mirrors), 'cache': str(self.cache)}

    @classmethod
    def from_dict(cls, values: dict) -> Sources:
        """What `to_dict` gave."""
        return cls(**values)


def _absolute(folder: str | Path) -> Path:
    return Path(os.path.abspath(Path(folder).expanduser()))


def _mirror(entry: str | Path) -> str:
    """A base URL without its last slash, or the absolute path of a folder."""
    entry = str(entry)
    if entry.startswith('file://'):
        entry = unquote(urlsplit(entry).path)
    return entry.rstrip('/') if '://' in entry else str(_absolute(entry))


class _Unusable(Exception):
    """One address has no usable file; the text says why."""


class _Broken(Exception):
    """Another try may bring the file; the text says what happened to this one."""


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
    """The last part of an address, as it stands there (with `%2B`)."""
    return urlsplit(url).path.rpartition('/')[2]


@functools.cache
def address(checkpoint: str) -> str:
    """Where `torchvision://resnet50` or `open-mmlab://resnext101_64x4d` of mmdet's configs lies; a URL stays as it is.

    Source: mmengine's own lists. Errors: WeightsError for a name that is in none.
    """
    scheme, _, name = checkpoint.partition('://')
    if scheme in ('http', 'https'):
        return checkpoint
    from mmengine.runner.checkpoint import get_external_models, get_torchvision_models  # seconds
    lists = {'torchvision': get_torchvision_models, 'open-mmlab': get_external_models}
    known = lists[scheme]() if scheme in lists else {}
    if name not in known:
        raise WeightsError(f'{checkpoint}: expected a URL, torchvision://NAME or open-mmlab://NAME with a name that '
                           'mmengine knows')
    return known[name]


# ---- finding ----------------------------------------------------------------------------------------------------

def find(url: str, sources: Sources) -> Path:
    """The published file of this address, with the right digits: from the user's folders, the cache (this kit's, then
    torch's), the mirrors, or the address itself; what is fetched is kept in the cache.

    Errors: WeightsError for a file in the user's folders whose content is not what its name says, for a full disk, and
    where the file is nowhere: the message lists all that was tried, and where to put it.
    """
    name, tried = file_name(url), []
    if digits(name) is None:
        raise WeightsError(f'{url}: the name carries no hash, so what comes from there could not be checked')
    sources.check_folders()
    for folder in sources.folders:
        if found := in_folder(folder, url):
            return check(found)
        tried.append(f'--weights: not in {folder}')
    for folder in (sources.cache, _torch_cache()):
        found = in_folder(folder, url)
        if found and _fits(found, name):
            return found
        tried.append(f'cache: {found} has other digits, ignored' if found else f'cache: not in {folder}')
    with _locked(sources.cache, name):
        if (found := sources.cache / name).is_file() and _fits(found, name):
            return found    # another process has fetched it meanwhile
        for mirror in (*sources.mirrors, None):
            if mirror is None or '://' in mirror:
                for address_there in ([url] if mirror is None else _addresses(mirror, url)):
                    try:
                        return _fetch(address_there, name, sources.cache)
                    except _Unusable as why:
                        tried.append(f'{"original" if mirror is None else "mirror"}: {address_there}: {why}')
            elif (found := in_folder(Path(mirror), url)) and _fits(found, name):
                return found
            else:
                tried.append(f'mirror: {found} has other digits' if found else f'mirror: not in {mirror}')
    variant = f' (or {unquote(name)})' if unquote(name) != name else ''
    raise WeightsError(
        f'{name} was not found; its SHA-256 begins with {digits(name)}. Tried:\n'
        + ''.join(f'  {line}\n' for line in tried)
        + f'Get the file elsewhere and put it, as {name}{variant}, into {sources.cache} or into a folder that '
          '--weights names (make: WEIGHTS=); or name a mirror with --mirrors')


def in_folder(folder: Path, url: str) -> Path | None:
    """The file of this address below a folder, flat or at its original path, with `%2B` or `+`; None if it is not."""
    path = urlsplit(url).path.lstrip('/')
    candidates = (path.rpartition('/')[2], path)
    return next((folder / name for candidate in candidates for name in (candidate, unquote(candidate))
                 if (folder / name).is_file()), None)


def check(path: Path) -> Path:
    """The path of a file that a user gave, if it has the digits that its name ends in.

    A name without digits is accepted, and said so. Errors: WeightsError naming both digests.
    """
    wanted = digits(path)
    if wanted is None:
        log.info(f'{path}: its name carries no hash, so its content was not checked')
        return path
    if not _fits(path, path.name):
        raise WeightsError(f'{path} ({path.stat().st_size} bytes) is damaged or another file: its SHA-256 begins with '
                           f'{files.sha256(path)[:len(wanted)]}, its name says {wanted}')
    return path


def _torch_cache() -> Path:
    import torch  # seconds: only who asks waits
    return Path(torch.hub.get_dir()) / 'checkpoints'


def _addresses(base: str, url: str) -> list[str]:
    """Where a mirror may have the file: at the original path, or flat; in the latter case also stored with `%2B`."""
    path, name = urlsplit(url).path, file_name(url)
    return list(dict.fromkeys([f'{base}{path}', f'{base}/{name}', f'{base}/{quote(name)}']))


def _fits(path: Path, name: str) -> bool:
    return files.sha256(path).startswith(digits(name))


@contextlib.contextmanager
def _locked(cache: Path, name: str) -> Iterator[None]:
    """One process at a time fetches a file; what one that was killed has left is removed."""
    lock = cache / f'.{name}.lock'
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.locked(lock, f'{name}: waiting for another process that fetches it'))
        except OSError as error:
            raise _cannot_write(cache, error) from None
        for stale in cache.glob(f'.{glob.escape(name)}.*'):
            if stale != lock:
                stale.unlink()
        yield


def _cannot_write(path: Path, error: OSError) -> WeightsError:
    return WeightsError(f'{path}: cannot be written ({error.strerror}); name another cache folder with --cache')


# ---- fetching ---------------------------------------------------------------------------------------------------

def _fetch(url: str, name: str, cache: Path) -> Path:
    """Fetch into the cache, whole or not at all; again where the connection breaks.

    Errors: _Unusable where this address does not give the file; WeightsError for a full disk.
    """
    log.info(f'{name}: fetching from {url}')
    reasons = []
    while True:
        try:
            with files.whole(cache / name) as beside:
                _download(url, beside, name)
                _check_what_came(beside, name, reasons)
            log.info(f'{name}: fetched into {cache}, its hash is right')
            return cache / name
        except _Broken as why:
            reasons.append(str(why))
            if len(reasons) == TRIES:
                raise _Unusable(f'{why} ({TRIES} tries)') from None
            log.info(f'{name}: {why}; trying again')
            time.sleep(PAUSE_S)


def _download(url: str, path: Path, name: str) -> None:
    """By torch.hub, whose errors are sorted here: an address without the file, a broken connection, the disk."""
    import torch
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)     # torch states none, and would wait for ever for a server that falls silent
    try:
        # Without hash_prefix: torch would throw a wrong file away unseen, and that it is a web page with it.
        torch.hub.download_url_to_file(url, str(path), progress=sys.stderr.isatty())
    except urllib.error.HTTPError as error:
        raise _Unusable(f'the server answers {error.code} {error.reason}') from None
    except (urllib.error.URLError, http.client.InvalidURL, ValueError) as error:    # or is no address
        raise _Unusable(f'cannot be reached: {getattr(error, "reason", error)}') from None
    except http.client.HTTPException as error:
        raise _Broken(f'the connection broke: {error!r}') from None
    except OSError as error:    # the connection's or the disk's
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free_bytes = shutil.disk_usage(path.parent).free
            raise WeightsError(f'{path.parent}: the disk is too full for {name}: {free_bytes} bytes are free; make '
                               'room, or name a cache folder on another disk with --cache') from None
        if error.filename or error.errno in (errno.EIO, errno.EROFS):
            raise _cannot_write(path.parent, error) from None
        raise _Broken(f'the connection broke: {error}') from None
    finally:
        socket.setdefaulttimeout(before)


def _check_what_came(path: Path, name: str, reasons: list[str]) -> None:
    """Errors: _Unusable for a web page or another file; _Broken where the file may have been cut short.

    Args:
        reasons: what earlier tries came to.
    """
    found, wanted = files.sha256(path), digits(name)
    if found.startswith(wanted):
        return
    if misfits.is_page(path):
        raise _Unusable('the server answers with a web page')
    text = (f'what came ({path.stat().st_size} bytes) has a SHA-256 that begins with {found[:len(wanted)]}, '
            f'not {wanted}')
    # To urllib a connection that breaks is the file's end; but it hardly breaks at the same byte twice.
    raise (_Unusable if text in reasons else _Broken)(text)
