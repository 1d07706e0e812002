import pytest

from amdlib.weights import published
from amdlib.weights.published import Sources

from .server import CONTENT, NAME, Server


@pytest.fixture
def serve():
    """Starts servers."""
    servers = []

    def start():
        servers.append(Server())
        return servers[-1]
    yield start
    for one in servers:
        one.close()


@pytest.fixture
def server(serve):
    return serve()


@pytest.fixture
def url(server):
    """The original address, where the right file lies."""
    server.files[f'/v2.0/retina/{NAME}'] = CONTENT
    return f'{server.url}/v2.0/retina/{NAME}'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Nothing in torch's cache, no proxy and no pauses; where the kit's cache will be."""
    for name in (f'{kind}_proxy' for kind in ('http', 'https', 'all')):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setattr(published, 'PAUSE_S', 0)
    return tmp_path / 'cache'


@pytest.fixture
def sources(cache):
    return Sources(cache=cache)
