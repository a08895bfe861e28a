"""Local servers for the downloads' tests: good ones, and every way of being bad that people have
met."""

import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

QUOTA = b"""<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>
<p class="uc-error-caption">Sorry, you can't view or download this file at this time.</p>
<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p>
</body></html>"""


@dataclass
class Server:
    """Serves `bodies` (path -> bytes) on 127.0.0.1 while its `with` block lasts, each request as
    `spoil` says.

    spoil(path, start) -> None: all is well, or a dict of
      cut: bytes of the body after which the connection is closed; reset: True, closed the hard way
      stall: bytes of the body after which nothing more comes
      status, type, body: another answer in place of the file; headers: added to it
    """

    bodies: dict[str, bytes]
    ranges: bool = True
    etag: bool = True
    rate: float = 0.0  # bytes per second; 0 = as fast as it goes
    spoil: Callable[[str, int], dict[str, Any] | None] = lambda path, start: None
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # (method, path, Range)
    sent: int = 0  # bytes of bodies so far

    def __enter__(self) -> "Server":
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        # killed clients are what these servers are for
        self._http.handle_error = lambda request, client: None
        self.over = threading.Event()
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self._http.shutdown()
        self._http.server_close()

    def gets(self) -> list[str]:
        """The Range of every GET so far, "" where none was asked for."""
        return [wanted for method, _, wanted in self.asked if method == "GET"]


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            wanted = self.headers.get("Range", "")
            server.asked.append((self.command, self.path, wanted))
            data = server.bodies.get(self.path)
            start = int(wanted[6:-1]) if wanted and server.ranges else 0
            how = (server.spoil(self.path, start) or {}) if body else {}
            etag = f'"{hash(data)}"' if server.etag else ""
            if start and self.headers.get("If-Range", etag) != etag:
                start = 0
            status, headers = 200, {"Content-Type": how.get("type", "application/octet-stream")}
            if "body" in how or data is None:
                status, data, start = how.get("status", 404), how.get("body", b"no such file"), 0
            elif "status" in how:
                status, data = how["status"], b""
            elif start >= len(data) and start:
                status, headers["Content-Range"], data = 416, f"bytes */{len(data)}", b""
            elif start:
                status, headers["Content-Range"] = 206, f"bytes {start}-{len(data) - 1}/{len(data)}"
            if etag:
                headers |= {"ETag": etag, "Last-Modified": formatdate(0, usegmt=True)}
            headers["Content-Length"] = str(len(data) - (start if status == 206 else 0))
            headers |= how.get("headers", {})
            self.send_response(status)
            for name, value in headers.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            if body:
                self._send(data[start if status == 206 else 0 :], how)

        def _send(self, data: bytes, how: dict[str, Any]) -> None:
            ends = [how[key] for key in ("cut", "stall") if key in how]
            view, at = memoryview(data), 0
            stop = min([len(data), *ends])
            step = max(1, int(server.rate / 1000)) if server.rate else 1 << 20
            try:
                while at < stop and not server.over.is_set():
                    sent = self.connection.send(view[at : min(stop, at + step)])
                    at, server.sent = at + sent, server.sent + sent
                    if server.rate:
                        # this is the throttle, not a wait for something to happen
                        time.sleep(step / server.rate)
                if "stall" in how:
                    server.over.wait()
                if how.get("reset"):
                    self.connection.setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
                if ends:
                    self.close_connection = True
            except OSError:
                self.close_connection = True  # the client went away, as some tests make it do

    return Handler
