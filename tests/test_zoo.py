"""zoo.py: where published weights come from, in which order; downloads that break, change, lie or do not fit.

A server in this process stands in for mirrors and for the original address; nothing leaves the machine.
"""
import errno
import hashlib
import http.server
import os
import re
import signal
import sys
import threading
from collections import namedtuple
from pathlib import Path
from urllib.parse import quote, unquote

import pytest

from amdlib import zoo
from amdlib.zoo import ZooError, address, check, digits, find, in_folder

CONTENT = bytes(range(256)) * 2000    # half a megabyte
OTHER = CONTENT[::-1]


def digits_of(content):
    return hashlib.sha256(content).hexdigest()[:8]


NAME = f'detector_x101-{digits_of(CONTENT)}.pth'


class Server:
    """Serves `files` (path -> bytes) and counts; the switches make it misbehave."""

    def __init__(self):
        self.files, self.requests, self.etags = {}, [], {}
        self.break_after = []          # bytes after which the next answers break off
        self.ranges = True
        self.page = False              # answers everything with a web page
        self.lengths = True
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                owner.answer(self)

            def log_message(self, *_):
                pass
        self.http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={'poll_interval': 0.01})
        self.thread.start()
        self.url = f'http://127.0.0.1:{self.http.server_port}'

    def answer(self, request):
        path = unquote(request.path)
        wanted = request.headers.get('Range')
        self.requests.append((request.path, wanted))
        if self.page:
            return self.send(request, 200, b'<html>log in</html>', {'Content-Type': 'text/html; charset=utf-8'})
        if path not in self.files:
            return self.send(request, 404, b'<html>no such file</html>', {'Content-Type': 'text/html'})
        content, headers = self.files[path], {'ETag': self.etags.get(path, '"1"')}
        if wanted and self.ranges:
            start = int(re.fullmatch(r'bytes=(\d+)-', wanted)[1])
            if start >= len(content):
                return self.send(request, 416, b'', {'Content-Range': f'bytes */{len(content)}'})
            headers['Content-Range'] = f'bytes {start}-{len(content) - 1}/{len(content)}'
            return self.send(request, 206, content[start:], headers)
        self.send(request, 200, content, headers)

    def send(self, request, status, body, headers):
        request.send_response(status)
        if self.lengths:
            headers = {**headers, 'Content-Length': str(len(body))}
        for key, value in headers.items():
            request.send_header(key, value)
        request.end_headers()
        request.wfile.write(body[:self.break_after.pop(0)] if self.break_after and status < 400 else body)

    def close(self):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of the kit and of torch, no folders and no mirrors, no pauses."""
    for name in ('AMD_WEIGHTS', 'AMD_MIRRORS', *(f'{kind}_proxy' for kind in ('http', 'https', 'all'))):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv('AMD_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setattr(zoo, 'PAUSE_S', 0)
    monkeypatch.setattr(zoo, 'PIECE_BYTES', 10_000)
    return tmp_path / 'cache'


@pytest.fixture
def url(server):
    """The original address, where the right file lies."""
    server.files[f'/v2.0/retina/{NAME}'] = CONTENT
    return f'{server.url}/v2.0/retina/{NAME}'


def put(folder, name, content=CONTENT):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def left(cache):
    """What lies in the cache, but for locks."""
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith('.lock'))


# ---- names ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('name', 'found'), [
    ('resnet50-0676ba61.pth', '0676ba61'), ('coco_20200130-366f5af1.pth', '366f5af1'),
    ('a-' + 'ab' * 32 + '.pth', 'ab' * 32), ('cascade_1x_coco-e75f90c8.pth', 'e75f90c8'), ('weights.pth', None),
    ('epoch_20240131.pth', None), ('teacher-20240131.pth', None), ('a-1234567.pth', None), ('366f5af1.pth', None),
    ('x101-64x4d.pth', None)])
def test_the_hash_in_a_name(name, found):
    assert digits(Path('/some/folder') / name) == found


@pytest.mark.parametrize(('name', 'url'), [
    ('torchvision://resnet50', 'https://download.pytorch.org/models/resnet50-0676ba61.pth'),
    ('open-mmlab://resnext101_64x4d',
     'https://download.openmmlab.com/pretrain/third_party/resnext101_64x4d-ee2c6f71.pth'),
    ('https://here/x-12345678.pth', 'https://here/x-12345678.pth')])
def test_where_mmdets_backbones_lie(name, url):
    assert address(name) == url


@pytest.mark.parametrize('name', ['torchvision://resnet51', 'ftp://resnet50', 'resnet50'])
def test_an_unknown_backbone_is_refused(name):
    with pytest.raises(ZooError, match=re.escape(name)):
        address(name)


# ---- the order of places ----------------------------------------------------------------------------------------

def test_each_place_is_asked_before_the_next(server, url, tmp_path, cache, monkeypatch):
    """Taken away one by one: folder, cache, torch's cache, first mirror, second mirror, original."""
    mirror = Server()
    try:
        mirror.files[f'/all/{NAME}'] = CONTENT
        places = [put(tmp_path / 'mine', NAME), put(cache, NAME), put(tmp_path / 'torch/hub/checkpoints', NAME),
                  put(tmp_path / 'disk', NAME)]
        monkeypatch.setenv('AMD_WEIGHTS', f'{tmp_path}{os.pathsep}{tmp_path / "mine"}')
        monkeypatch.setenv('AMD_MIRRORS', f'file://{tmp_path}/disk, {mirror.url}/all/')
        for place in places:
            assert find(url) == place
            place.unlink()
        assert find(url) == cache / NAME and (cache / NAME).read_bytes() == CONTENT
        assert not server.requests
        assert [path for path, _ in mirror.requests] == [f'/all/v2.0/retina/{NAME}', f'/all/{NAME}']
        mirror.files.clear()
        (cache / NAME).unlink()
        assert find(url) == cache / NAME
        assert server.requests == [(f'/v2.0/retina/{NAME}', None)]
    finally:
        mirror.close()


def test_a_cached_file_is_not_fetched_again(server, url):
    assert find(url) == find(url)
    assert len(server.requests) == 1


def test_a_damaged_file_in_the_cache_is_fetched_again(url, cache):
    put(cache, NAME, CONTENT[:-1])
    assert find(url).read_bytes() == CONTENT


@pytest.mark.parametrize('stored', ['a%2Bb', 'a+b', 'models/a%2Bb/a%2Bb', 'models/a+b/a+b'])
def test_a_plus_in_a_name_may_be_encoded_or_not(tmp_path, monkeypatch, stored):
    """Flat, or in a copy of the host's folders."""
    url = f'https://nowhere/models/a%2Bb/a%2Bb-{digits_of(CONTENT)}.pth'
    path = put(tmp_path, f'{stored}-{digits_of(CONTENT)}.pth')
    monkeypatch.setenv('AMD_WEIGHTS', str(tmp_path))
    assert in_folder(tmp_path, url) == path and find(url) == path


@pytest.mark.parametrize('stored', ['a+b', 'a%2Bb'])
def test_a_mirror_may_store_a_plus_encoded_or_not(server, monkeypatch, stored, cache):
    name = f'a%2Bb-{digits_of(CONTENT)}.pth'
    server.files[f'/{unquote(name) if stored == "a+b" else name}'] = CONTENT
    monkeypatch.setenv('AMD_MIRRORS', server.url)
    assert find(f'http://127.0.0.1:1/models/{name}') == cache / name
    assert server.requests[-1][0] == f'/{name if stored == "a+b" else quote(name)}'


# ---- files that a user gives ------------------------------------------------------------------------------------

def test_a_given_file_must_have_the_hash_in_its_name(tmp_path):
    said = []
    assert check(put(tmp_path, NAME), said.append) == tmp_path / NAME and not said
    with pytest.raises(ZooError) as told:
        check(put(tmp_path, NAME, OTHER))
    assert NAME in str(told.value) and digits_of(OTHER) in str(told.value) and '512000 bytes' in str(told.value)


def test_a_given_file_without_a_hash_is_taken_and_said(tmp_path):
    said = []
    check(put(tmp_path, 'mine.pth', OTHER), said.append)
    assert 'mine.pth' in said[0] and 'not checked' in said[0]


def test_a_wrong_file_in_the_users_folder_is_an_error_and_not_passed_over(server, url, tmp_path, monkeypatch):
    monkeypatch.setenv('AMD_WEIGHTS', str(tmp_path))
    put(tmp_path, NAME, CONTENT[:1000])
    with pytest.raises(ZooError, match=rf'{NAME} \(1000 bytes\) is damaged'):
        find(url)
    assert not server.requests


def test_a_folder_that_does_not_exist_is_named(url, monkeypatch):
    monkeypatch.setenv('AMD_WEIGHTS', '/no/such/folder')
    with pytest.raises(ZooError, match='AMD_WEIGHTS=/no/such/folder: no such folder'):
        find(url)


def test_the_environment_for_other_folders_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'w').mkdir()
    monkeypatch.setenv('AMD_WEIGHTS', 'w')
    monkeypatch.setenv('AMD_CACHE', 'c')
    assert zoo.environment() == {'AMD_WEIGHTS': f'{tmp_path}/w', 'AMD_CACHE': f'{tmp_path}/c'}
    monkeypatch.setenv('AMD_MIRRORS', 'disk https://there/')
    assert zoo.environment()['AMD_MIRRORS'] == f'file://{tmp_path}/disk,https://there'
    monkeypatch.setenv('AMD_MIRRORS', zoo.environment()['AMD_MIRRORS'])
    assert zoo.mirrors() == [f'{tmp_path}/disk', 'https://there']


# ---- downloads that go wrong ------------------------------------------------------------------------------------

def test_a_broken_connection_is_taken_up_where_it_broke(server, url, cache):
    server.break_after = [100_000, 150_000]
    said = []
    assert find(url, said.append).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == [None, 'bytes=100000-', 'bytes=250000-']
    assert left(cache) == [NAME] and sum('connection broke after' in line for line in said) == 2


def test_a_killed_download_is_taken_up_by_the_next_process(server, url, cache, monkeypatch):
    """A process that is killed leaves a part; nothing else may pass for the file."""
    child = os.fork()
    if child == 0:
        def killed(*words, original=zoo._with_progress):
            for i, piece in enumerate(original(*words)):
                if i == 20:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield piece
        zoo._with_progress = killed
        find(url)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    names = left(cache)
    assert names == [f'{NAME}.part', f'{NAME}.part.json']
    had = (cache / f'{NAME}.part').stat().st_size
    assert 0 < had < len(CONTENT)
    assert find(url).read_bytes() == CONTENT
    assert server.requests[-1][1] == f'bytes={had}-' and left(cache) == [NAME]


def test_a_server_without_ranges_is_asked_for_the_whole(server, url, cache):
    server.ranges, server.break_after = False, [100_000]
    assert find(url).read_bytes() == CONTENT
    assert len(server.requests) == 2 and left(cache) == [NAME]


def test_a_server_that_does_not_say_the_length_is_no_hindrance(server, url):
    server.lengths = False
    assert find(url).read_bytes() == CONTENT


@pytest.mark.parametrize('change', ['etag', 'length', 'content'])
def test_a_file_that_has_changed_is_fetched_from_its_beginning(server, url, cache, change):
    """The part is of another file: told by ETag or length at once, else by the hash in the end."""
    path = f'/v2.0/retina/{NAME}'
    server.files[path] = OTHER if change != 'length' else OTHER[:-5]
    server.etags[path] = '"old"' if change == 'etag' else '"1"'
    server.break_after = [100_000] * 1 + [0] * (zoo.TRIES - 1)
    with pytest.raises(ZooError, match='cannot be reached|broken'):
        find(url)
    assert (cache / f'{NAME}.part').stat().st_size == 100_000
    server.files[path], server.etags[path] = CONTENT, '"1"'
    server.requests.clear()
    assert find(url).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == ['bytes=100000-', None] and left(cache) == [NAME]


def test_a_part_is_completed_from_another_mirror(server, url, cache, monkeypatch):
    server.break_after = [100_000] + [0] * (zoo.TRIES - 1)
    with pytest.raises(ZooError):
        find(url)
    mirror = Server()
    try:
        mirror.files[f'/{NAME}'], mirror.etags[f'/{NAME}'] = CONTENT, '"of the mirror"'
        monkeypatch.setenv('AMD_MIRRORS', mirror.url)
        assert find(url).read_bytes() == CONTENT
        assert mirror.requests[-1] == (f'/{NAME}', 'bytes=100000-')
    finally:
        mirror.close()


def test_a_part_that_is_complete_is_not_fetched_again(server, url, cache):
    put(cache, f'{NAME}.part', CONTENT)
    assert find(url).read_bytes() == CONTENT and left(cache) == [NAME]
    assert not server.requests


def test_a_part_that_is_longer_than_the_file_is_thrown_away(server, url, cache):
    put(cache, f'{NAME}.part', CONTENT + b'x')
    assert find(url).read_bytes() == CONTENT and left(cache) == [NAME]
    assert [wanted for _, wanted in server.requests] == [f'bytes={len(CONTENT) + 1}-', None]


def test_a_wrong_hash_is_refused_and_leaves_nothing(server, url, cache):
    server.files[f'/v2.0/retina/{NAME}'] = OTHER
    with pytest.raises(ZooError, match=f'begins with {digits_of(OTHER)}, not {digits_of(CONTENT)}'):
        find(url)
    assert left(cache) == [] and len(server.requests) == 1


def test_a_mirror_with_a_wrong_file_is_passed_over(server, url, monkeypatch):
    server.files[f'/bad/{NAME}'] = OTHER
    monkeypatch.setenv('AMD_MIRRORS', f'{server.url}/bad')
    assert find(url).read_bytes() == CONTENT


@pytest.mark.parametrize('page', [False, True])
def test_a_missing_file_and_a_web_page_are_told(server, url, cache, page):
    server.page = page
    server.files.clear()
    with pytest.raises(ZooError, match='web page' if page else '404 Not Found'):
        find(url)
    assert left(cache) == []


def test_the_message_has_name_hash_every_place_and_what_to_do(server, tmp_path, cache, monkeypatch):
    monkeypatch.setenv('AMD_WEIGHTS', str(tmp_path))
    monkeypatch.setenv('AMD_MIRRORS', f'{server.url} {tmp_path}/disk  http://no-such-host.invalid/x')
    name = NAME.replace('x101', 'x%2B101')
    with pytest.raises(ZooError) as told:
        find(f'http://127.0.0.1:1/v2.0/{name}')
    text = str(told.value)
    assert text.startswith(f'{name} was not found; its SHA-256 begins with {digits_of(CONTENT)}')
    for part in (f'AMD_WEIGHTS: not in {tmp_path}', f'cache: not in {cache}', f'cache: not in {tmp_path}/torch/hub',
                 f'mirror: {server.url}/v2.0/{name}: the server answers 404', f'mirror: not in {tmp_path}/disk',
                 f'mirror: http://no-such-host.invalid/x/{name}: cannot be reached',
                 f'original: http://127.0.0.1:1/v2.0/{name}: cannot be reached: [Errno 111] Connection refused',
                 f'put it, as {name} (or {unquote(name)}), into {cache}', 'AMD_MIRRORS', 'WEIGHTS='):
        assert part in text, (part, text)


def test_a_server_that_falls_silent_is_given_up(server, url, monkeypatch):
    monkeypatch.setattr(zoo, 'TIMEOUT_S', (1, 0.1))
    silence = threading.Event()
    monkeypatch.setattr(server, 'answer', lambda request: silence.wait(5))
    try:
        with pytest.raises(ZooError, match='timed out'):
            find(url)
    finally:
        silence.set()


# ---- the disk ---------------------------------------------------------------------------------------------------

Usage = namedtuple('Usage', 'total used free')


def test_a_disk_without_room_is_told_before_anything_is_written(url, cache, monkeypatch):
    monkeypatch.setattr(zoo.shutil, 'disk_usage', lambda _: Usage(10**6, 9 * 10**5, 10**5))
    with pytest.raises(ZooError, match=f'{len(CONTENT)} bytes are needed, 100000 are free.*AMD_CACHE'):
        find(url)
    assert left(cache) == []


def test_a_disk_that_fills_up_is_told_and_the_part_stays(url, cache, monkeypatch):
    def pieces(*words):
        yield from list(original(*words))[:3]
        raise OSError(errno.ENOSPC, 'No space left on device')
    original = zoo._with_progress
    with monkeypatch.context() as patch:
        patch.setattr(zoo, '_with_progress', pieces)
        with pytest.raises(ZooError, match=f'{NAME}: {len(CONTENT) - 30_000} bytes are needed'):
            find(url)
    assert left(cache) == [f'{NAME}.part', f'{NAME}.part.json']
    assert find(url).read_bytes() == CONTENT


def test_a_cache_that_cannot_be_written_is_told(url, tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('in the way')
    monkeypatch.setenv('AMD_CACHE', str(tmp_path / 'file' / 'cache'))
    with pytest.raises(ZooError, match='cannot be written.*AMD_CACHE'):
        find(url)


# ---- several at once, and what is said --------------------------------------------------------------------------

def test_several_who_ask_at_once_fetch_once(server, url, cache):
    found, said = [], []
    threads = [threading.Thread(target=lambda: found.append(find(url, said.append))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [cache / NAME] * 4 and len(server.requests) == 1
    assert left(cache) == [NAME]


def test_a_log_has_lines_and_a_terminal_a_bar(url, cache, monkeypatch, capsys):
    monkeypatch.setattr(zoo, 'LINE_EVERY_S', 0)
    said = []
    find(url, said.append)
    assert said[0] == f'{NAME}: fetching 0.5 MB' and re.fullmatch(rf'{NAME}: 0\.\d MB of 0\.5 MB', said[1])
    assert said[-1] == f'{NAME}: fetched into {cache}, its hash is right' and capsys.readouterr().err == ''
    (cache / NAME).unlink()
    said.clear()
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    find(url, said.append)
    assert said == [f'{NAME}: fetched into {cache}, its hash is right'] and '512k/512k' in capsys.readouterr().err
