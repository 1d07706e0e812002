"""files.py: files are whole or as they were; the same content gives the same bytes; one process at a time."""
import gzip
import json
import logging
import lzma
import multiprocessing
import os
import time

import pytest

from amdlib.errors import RunError
from amdlib.files import digest, locked, read_csv, read_json, remove_halves, sha256, whole, write_json, write_text

FOUND = [{'image_id': i, 'bbox': [1.25, 2.0, 3.5, 4.0], 'score': 0.5} for i in range(100)]


def test_json_comes_back_and_is_packed_where_the_name_says_so(tmp_path):
    unpacked = {'a.json': bytes, 'a.json.gz': gzip.decompress, 'a.json.xz': lzma.decompress}
    for name, unpack in unpacked.items():
        write_json(tmp_path / name, FOUND)
        assert read_json(tmp_path / name) == FOUND
        first = (tmp_path / name).read_bytes()
        write_json(tmp_path / name, FOUND)
        assert (tmp_path / name).read_bytes() == first  # no time in the file
        assert json.loads(unpack(first)) == FOUND
        assert name == 'a.json' or len(first) < len(json.dumps(FOUND)) / 2
    assert sorted(os.listdir(tmp_path)) == sorted(unpacked)


@pytest.mark.parametrize('name', ['a.json', 'a.json.gz'])
def test_a_failed_write_leaves_the_file_as_it_was(tmp_path, name):
    write_json(tmp_path / name, {'a': 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / name, {'a': object()})
    assert read_json(tmp_path / name) == {'a': 1}
    assert os.listdir(tmp_path) == [name]


def _write_half(path):
    with whole(path) as beside:
        beside.write_text('new, hal')
        raise RuntimeError('the disk is full')


def test_a_block_that_fails_leaves_nothing(tmp_path):
    write_text(tmp_path / 'a.txt', 'old')
    with pytest.raises(RuntimeError, match='full'):
        _write_half(tmp_path / 'a.txt')
    assert (tmp_path / 'a.txt').read_text() == 'old'
    assert os.listdir(tmp_path) == ['a.txt']


@pytest.mark.parametrize('name', ['a.json.gz', 'a.json.xz'])
@pytest.mark.parametrize('cut', [0, 5, -4])
def test_what_is_cut_short_is_told(tmp_path, name, cut):
    write_json(tmp_path / name, FOUND)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:cut])
    with pytest.raises((ValueError, OSError)):
        read_json(tmp_path / name)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'a.json')
    with pytest.raises(OSError, match='a.json: no regular file'):
        read_json(tmp_path / 'a.json')


@pytest.mark.parametrize('content', [b'', b'\xff\x00', b'a,b\n1\n1,2,3\n'])
def test_a_table_of_another_kind_is_told(tmp_path, content):
    (tmp_path / 'a.csv').write_bytes(content)
    with pytest.raises(RunError, match='a.csv cannot be read'):
        read_csv(tmp_path / 'a.csv')
    (tmp_path / 'a.csv').write_text('a,b\n1,2\n')
    assert read_csv(tmp_path / 'a.csv', 'ab').to_dict('list') == {'a': [1], 'b': [2]}
    with pytest.raises(RunError, match='a.csv has no column c'):
        read_csv(tmp_path / 'a.csv', 'abc')


def test_halves_of_killed_processes_are_removed_and_those_of_living_ones_stay(tmp_path):
    ended = multiprocessing.get_context('spawn').Process()
    ended.start()
    ended.join()
    names = (f'.a.json.{ended.pid}', f'.a.json.{os.getpid()}', '.a.json', 'a.json', '.hidden.5x', f'a.{ended.pid}')
    for name in names:
        (tmp_path / name).touch()
    remove_halves(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(names[1:])
    remove_halves(tmp_path / 'none')


def test_hashes(tmp_path):
    (tmp_path / 'a').write_bytes(b'abc')
    assert sha256(tmp_path / 'a').startswith('ba7816bf8f01cfea')
    assert digest('abc') == 'ba7816bf8f01cfea'


def _hold(path, began):
    with locked(path, 'waiting'):
        began.set()
        time.sleep(60)


def test_a_lock_is_waited_for_and_freed_when_its_holder_is_killed(tmp_path, caplog):
    context = multiprocessing.get_context('fork')
    began = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / 'new' / '.lock', began))
    holder.start()
    began.wait()

    class Killer(logging.Handler):
        def emit(self, record):
            holder.kill()
    log, killer = logging.getLogger('amdlib'), Killer()
    log.addHandler(killer)
    try:
        with locked(tmp_path / 'new' / '.lock', 'another process holds it'):
            assert caplog.messages == ['another process holds it']
    finally:
        log.removeHandler(killer)
        holder.kill()
        holder.join()
    with locked(tmp_path / 'new' / '.lock', 'nobody holds it'):
        assert caplog.messages == ['another process holds it']
