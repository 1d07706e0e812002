"""Where published weights come from, in which order, and what is told where they are not to be had."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote, unquote

import pytest

from amdlib.errors import WeightsError
from amdlib.files import ROOT
from amdlib.weights.published import Sources, address, check, digits, file_name, find, in_folder

from .server import CONTENT, NAME, OTHER, digits_of, put

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
    with pytest.raises(WeightsError, match=re.escape(name)):
        address(name)


def test_names_cost_no_import_of_torch():
    code = ('import sys; from amdlib.weights.published import Sources, check, digits, file_name, in_folder; '
            'Sources(); assert digits(file_name("https://a/b-12345678.pth")); '
            'sys.exit(bool({"torch", "mmengine", "numpy"} & set(sys.modules)))')
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=False).returncode == 0


def test_file_names_stay_as_the_address_has_them():
    assert file_name('https://a/b/c%2Bd-12345678.pth?x=1') == 'c%2Bd-12345678.pth'


# ---- sources ----------------------------------------------------------------------------------------------------

def test_sources_are_absolute_and_go_through_json(tmp_path, monkeypatch):
    """They are handed to processes that work in other folders."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'w').mkdir()
    typed = Sources.of(weights=f'w{os.pathsep}{tmp_path}', mirrors=f'disk, https://there/ file://{tmp_path}/a%20b',
                       cache='c')
    assert typed == Sources((tmp_path / 'w', tmp_path), (f'{tmp_path}/disk', 'https://there', f'{tmp_path}/a b'),
                            tmp_path / 'c')
    assert Sources.from_dict(json.loads(json.dumps(typed.to_dict()))) == typed
    assert Sources.of() == Sources() == Sources(cache=ROOT / 'data/weights')


def test_a_folder_that_does_not_exist_is_named(url):
    with pytest.raises(WeightsError, match='WEIGHTS=/no/such/folder: no such folder'):
        Sources.of('/no/such/folder')
    with pytest.raises(WeightsError, match='WEIGHTS=/no/such/folder: no such folder'):
        find(url, Sources(('/no/such/folder',)))


# ---- the order of what is asked ---------------------------------------------------------------------------------

def test_each_is_asked_before_the_next(server, serve, url, tmp_path, cache):
    """Taken away one by one: folder, cache, torch's cache, first mirror, second mirror, original."""
    mirror = serve()
    mirror.files[f'/all/{NAME}'] = CONTENT
    paths = [put(tmp_path / 'mine', NAME), put(cache, NAME), put(tmp_path / 'torch/hub/checkpoints', NAME),
             put(tmp_path / 'disk', NAME)]
    sources = Sources((tmp_path, tmp_path / 'mine'), (f'file://{tmp_path}/disk', f'{mirror.url}/all/'), cache)
    for path in paths:
        assert find(url, sources) == path
        path.unlink()
    assert find(url, sources) == cache / NAME
    assert (cache / NAME).read_bytes() == CONTENT
    assert not server.requests
    assert mirror.requests == [f'/all/v2.0/retina/{NAME}', f'/all/{NAME}']
    mirror.files.clear()
    (cache / NAME).unlink()
    assert find(url, sources) == cache / NAME
    assert server.requests == [f'/v2.0/retina/{NAME}']


def test_a_cached_file_is_not_fetched_again(server, url, sources):
    assert find(url, sources) == find(url, sources)
    assert len(server.requests) == 1


def test_a_damaged_file_in_the_cache_is_fetched_again(url, cache, sources):
    put(cache, NAME, CONTENT[:-1])
    assert find(url, sources).read_bytes() == CONTENT


@pytest.mark.parametrize('stored', ['a%2Bb', 'a+b', 'models/a%2Bb/a%2Bb', 'models/a+b/a+b'])
def test_a_plus_in_a_name_may_be_encoded_or_not(tmp_path, stored):
    """Flat, or in a copy of the host's folders."""
    url = f'https://nowhere/models/a%2Bb/a%2Bb-{digits_of(CONTENT)}.pth'
    path = put(tmp_path, f'{stored}-{digits_of(CONTENT)}.pth')
    assert in_folder(tmp_path, url) == path
    assert find(url, Sources((tmp_path,))) == path


@pytest.mark.parametrize('stored', ['a+b', 'a%2Bb'])
def test_a_mirror_may_store_a_plus_encoded_or_not(server, stored, cache):
    name = f'a%2Bb-{digits_of(CONTENT)}.pth'
    server.files[f'/{unquote(name) if stored == "a+b" else name}'] = CONTENT
    assert find(f'http://127.0.0.1:1/models/{name}', Sources((), (server.url,), cache)) == cache / name
    assert server.requests[-1] == f'/{name if stored == "a+b" else quote(name)}'


def test_the_message_has_name_hash_all_that_was_tried_and_what_to_do(server, tmp_path, cache):
    sources = Sources((tmp_path,), (server.url, tmp_path / 'disk', 'http://no-such-host.invalid/x'), cache)
    name = NAME.replace('x101', 'x%2B101')
    with pytest.raises(WeightsError) as told:
        find(f'http://127.0.0.1:1/v2.0/{name}', sources)
    text = str(told.value)
    assert text.startswith(f'{name} was not found; its SHA-256 begins with {digits_of(CONTENT)}')
    for part in (f'--weights: not in {tmp_path}', f'cache: not in {cache}', f'cache: not in {tmp_path}/torch/hub',
                 f'mirror: {server.url}/v2.0/{name}: the server answers 404', f'mirror: not in {tmp_path}/disk',
                 f'mirror: http://no-such-host.invalid/x/{name}: cannot be reached',
                 f'original: http://127.0.0.1:1/v2.0/{name}: cannot be reached: [Errno 111] Connection refused',
                 f'put it, as {name} (or {unquote(name)}), into {cache}', '--mirrors', 'WEIGHTS='):
        assert part in text, (part, text)


# ---- files that a user gives ------------------------------------------------------------------------------------

def test_a_given_file_must_have_the_hash_in_its_name(tmp_path, caplog):
    assert check(put(tmp_path, NAME)) == tmp_path / NAME
    assert not caplog.messages
    with pytest.raises(WeightsError) as told:
        check(put(tmp_path, NAME, OTHER))
    assert all(part in str(told.value) for part in (NAME, digits_of(OTHER), '512000 bytes'))


def test_a_given_file_without_a_hash_is_taken_and_said(tmp_path, caplog):
    assert check(put(tmp_path, 'mine.pth', OTHER)) == tmp_path / 'mine.pth'
    assert 'mine.pth: its name carries no hash, so its content was not checked' in caplog.messages[0]


def test_a_wrong_file_in_the_users_folder_is_an_error_and_not_passed_over(server, url, tmp_path):
    put(tmp_path, NAME, CONTENT[:1000])
    with pytest.raises(WeightsError, match=rf'{NAME} \(1000 bytes\) is damaged'):
        find(url, Sources((tmp_path,)))
    assert not server.requests
