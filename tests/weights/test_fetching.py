"""`published.find` where something goes wrong on the way: connections, servers, the disk, several at once."""
import errno
import http.client
import os
import shutil
import signal
import sys
import threading
import urllib.error
from pathlib import Path

import pytest
import torch

from amdlib.errors import WeightsError
from amdlib.weights import published
from amdlib.weights.published import Sources, find

from .server import CONTENT, NAME, OTHER, digits_of, left

# ---- downloads that go wrong ------------------------------------------------------------------------------------

def test_a_broken_connection_is_tried_again(server, url, cache, sources, caplog):
    server.break_after = [100_000, 150_000]
    assert find(url, sources).read_bytes() == CONTENT
    assert len(server.requests) == 3
    assert left(cache) == [NAME]
    assert sum('trying again' in line for line in caplog.messages) == 2


def test_after_some_broken_connections_the_next_address_is_asked(server, serve, url, cache):
    mirror = serve()
    mirror.files[f'/v2.0/retina/{NAME}'] = CONTENT
    mirror.break_after = [100_000 + i for i in range(published.TRIES)]
    assert find(url, Sources((), (mirror.url,), cache)).read_bytes() == CONTENT
    assert len(mirror.requests) == published.TRIES + 1     # and once where it may lie flat
    assert len(server.requests) == 1
    server.break_after, server.files = [100_000 + i for i in range(published.TRIES)], {}
    server.files[f'/v2.0/retina/{NAME}'] = CONTENT
    (cache / NAME).unlink()
    with pytest.raises(WeightsError, match=rf'original: .*what came \(100002 bytes\).*\({published.TRIES} tries\)'):
        find(url, Sources(cache=cache))
    assert left(cache) == []


def test_what_a_killed_download_leaves_is_removed_by_the_next(url, cache, sources, monkeypatch):
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(shutil, 'move', lambda *_: os.kill(os.getpid(), signal.SIGKILL))   # all but renamed
        find(url, sources)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert [name.endswith('.partial') for name in left(cache)] == [True]
    assert find(url, sources).read_bytes() == CONTENT
    assert left(cache) == [NAME]


def test_a_server_that_does_not_say_the_length_is_no_hindrance(server, url, sources):
    server.lengths = False
    assert find(url, sources).read_bytes() == CONTENT


def test_a_wrong_hash_is_refused_and_leaves_nothing(server, url, cache, sources):
    """Asked for twice: to urllib a broken connection looks the same, but not at the same byte."""
    server.files[f'/v2.0/retina/{NAME}'] = OTHER
    with pytest.raises(WeightsError, match=f'begins with {digits_of(OTHER)}, not {digits_of(CONTENT)}'):
        find(url, sources)
    assert left(cache) == []
    assert len(server.requests) == 2


def test_a_mirror_with_a_wrong_file_is_passed_over(server, url, cache):
    server.files[f'/bad/{NAME}'] = OTHER
    assert find(url, Sources((), (f'{server.url}/bad',), cache)).read_bytes() == CONTENT


@pytest.mark.parametrize(('switch', 'told'), [({'page': True}, 'web page'), ({'files': {}}, '404 Not Found'),
                                              ({'status': 503}, '503 Service Unavailable')])
def test_a_missing_file_and_a_web_page_are_told(server, url, cache, sources, switch, told):
    vars(server).update(switch)
    with pytest.raises(WeightsError, match=f'original: {url}: the server answers (with a )?{told}'):
        find(url, sources)
    assert left(cache) == []
    assert len(server.requests) == 1


def test_a_server_that_falls_silent_is_given_up(server, url, sources, monkeypatch):
    monkeypatch.setattr(published, 'TIMEOUT_S', 0.1)
    silence = threading.Event()
    monkeypatch.setattr(server, 'answer', lambda request: silence.wait(5))
    try:
        with pytest.raises(WeightsError, match='the connection broke: timed out'):
            find(url, sources)
    finally:
        silence.set()


def test_a_name_without_a_hash_is_not_fetched(server, sources):
    with pytest.raises(WeightsError, match='mine.pth: the name carries no hash'):
        find(f'{server.url}/mine.pth', sources)
    assert not server.requests


@pytest.mark.parametrize('mirror', ['foo://x', 'http://[bad', 'http://a b:x/'])
def test_a_mirror_that_is_no_address_is_told_and_passed_over(url, cache, mirror):
    assert find(url, Sources((), (mirror,), cache)).read_bytes() == CONTENT


# ---- the disk ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('error', 'told'), [
    (OSError(errno.ENOSPC, 'No space left'), rf'the disk is too full for {NAME}: \d+ bytes are free.*--cache'),
    (OSError(errno.EIO, 'Input/output error'), r'cannot be written \(Input/output error\).*--cache'),
    (PermissionError(errno.EACCES, 'Permission denied', '/cache/x'), r'cannot be written \(Permission denied\)')])
def test_a_disk_that_takes_no_more_is_told_at_once(url, cache, sources, monkeypatch, error, told):
    def failing(_url, path, **_):
        Path(path).write_bytes(CONTENT[:1000])
        raise error
    with monkeypatch.context() as patch:
        patch.setattr(torch.hub, 'download_url_to_file', failing)
        with pytest.raises(WeightsError, match=told):
            find(url, sources)
    assert left(cache) == []
    assert find(url, sources).read_bytes() == CONTENT


@pytest.mark.parametrize('error', [ConnectionResetError(errno.ECONNRESET, 'Connection reset by peer'),
                                   OSError(errno.EHOSTUNREACH, 'No route to host'), TimeoutError('timed out'),
                                   http.client.IncompleteRead(b'', 9)])
def test_a_connection_that_breaks_is_not_taken_for_the_disk(url, cache, sources, monkeypatch, error):
    def failing(*_, **__):
        raise error
    monkeypatch.setattr(torch.hub, 'download_url_to_file', failing)
    with pytest.raises(WeightsError, match=rf'the connection broke: .*\({published.TRIES} tries\)'):
        find(url, sources)
    assert left(cache) == []


def test_without_a_network_no_time_is_lost(url, sources, monkeypatch):
    asked = []

    def failing(url, *_, **__):
        asked.append(url)
        raise urllib.error.URLError(OSError(errno.ENETUNREACH, 'Network is unreachable'))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', failing)
    with pytest.raises(WeightsError, match='cannot be reached: .*Network is unreachable'):
        find(url, sources)
    assert asked == [url]


def test_a_cache_that_cannot_be_written_is_told(url, tmp_path):
    (tmp_path / 'file').write_text('in the way')
    with pytest.raises(WeightsError, match='cannot be written.*--cache'):
        find(url, Sources(cache=tmp_path / 'file' / 'cache'))


# ---- several at once, and what is said --------------------------------------------------------------------------

def test_several_who_ask_at_once_fetch_once(server, url, cache, sources):
    found = []
    threads = [threading.Thread(target=lambda: found.append(find(url, sources))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [cache / NAME] * 4
    assert len(server.requests) == 1
    assert left(cache) == [NAME]


@pytest.mark.parametrize('terminal', [False, True])
def test_a_log_has_lines_and_a_terminal_a_bar_too(url, cache, sources, monkeypatch, capsys, caplog, terminal):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: terminal)
    find(url, sources)
    assert caplog.messages == [f'{NAME}: fetching from {url}',
                               f'{NAME}: fetched into {cache}, its hash is right']
    assert ('500k/500k' in capsys.readouterr().err) == terminal
