"""A server in this process stands in for mirrors and for the original address; nothing leaves the machine."""
import hashlib
import http.server
import threading
from urllib.parse import unquote

CONTENT = bytes(range(256)) * 2000    # half a megabyte
OTHER = CONTENT[::-1]


def digits_of(content):
    return hashlib.sha256(content).hexdigest()[:8]


NAME = f'detector_x101-{digits_of(CONTENT)}.pth'


class Server:
    """Serves `files` (path -> bytes) and remembers what was asked for; the switches make it misbehave."""

    def __init__(self):
        self.files, self.requests = {}, []
        self.break_after = []          # bytes after which the next answers break off
        self.page = False              # answers everything with a web page
        self.lengths = True
        self.status = None
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                owner.answer(self)

            def log_message(self, *_):
                pass
        self.http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.http.handle_error = lambda *_: None     # a client that is gone
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={'poll_interval': 0.01})
        self.thread.start()
        self.url = f'http://127.0.0.1:{self.http.server_port}'

    def answer(self, request):
        path = unquote(request.path)
        self.requests.append(request.path)
        if self.status:
            self.send(request, self.status, b'', {})
        elif self.page:
            self.send(request, 200, b'<html>log in</html>', {'Content-Type': 'text/html; charset=utf-8'})
        elif path not in self.files:
            self.send(request, 404, b'<html>no such file</html>', {'Content-Type': 'text/html'})
        else:
            self.send(request, 200, self.files[path], {})

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


def put(folder, name, content=CONTENT):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def left(cache):
    """What lies in the cache, but for locks."""
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith('.lock'))
