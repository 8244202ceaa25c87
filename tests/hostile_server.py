"""A server on this machine that misbehaves in every way that has been seen to happen, and archives for it to serve."""

import io
import random
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGE = b"<!DOCTYPE html><html><body>Please log in to the guest network.</body></html>"


class Handler(BaseHTTPRequestHandler):
    """Serves `server.body` with ranges; `server.script` holds one misbehaviour per request, used up in order."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def end_headers(self) -> None:
        self.send_header("Connection", "close")
        super().end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server = self.server
        server.requests.append(dict(self.headers))
        deed = server.script.pop(0) if server.script else ""
        self.close_connection = True
        if deed.split(" ")[0].isdigit():
            self.fail(int(deed.split(" ")[0]), "page" in deed)
        elif "portal" in deed:
            self.whole(PAGE, {} if "untyped" in deed else {"Content-Type": "text/html; charset=utf-8"}, deed)
        elif deed.startswith("to "):
            self.send_response(302)
            self.send_header("Location", deed.removeprefix("to "))
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif deed == "empty":
            self.whole(b"", {}, deed)
        elif "other" in deed:  # another file than the one that was asked for
            self.whole(server.body[: len(server.body) // 3], {"ETag": '"other"'}, deed)
        else:
            self.part(server.body, deed)

    def fail(self, code: int, page: bool) -> None:
        self.send_response(code)
        if self.server.wait:
            self.send_header("Retry-After", str(self.server.wait))
        if page:
            self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(PAGE) if page else 0))
        self.end_headers()
        if page:
            self.wfile.write(PAGE)

    def whole(self, body: bytes, headers: dict[str, str], deed: str) -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        if "no-length" not in deed:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(self.cut(body, deed))

    def part(self, body: bytes, deed: str) -> None:
        server = self.server
        wanted = self.headers.get("Range", "").removeprefix("bytes=")
        same = self.headers.get("If-Range") in (None, server.tag)
        tag = {"ETag": server.tag} if server.tag else {}
        if not wanted or not same or "whole" in deed:
            self.whole(body, tag, deed)
            return
        low, high = wanted.split("-")
        last = len(body) - 1
        first, last = (int(low), int(high or last)) if low else (max(0, len(body) - int(high)), last)
        if first > last:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first + ('shifted' in deed)}-{last}/{len(body)}")
        if "no-length" not in deed:
            self.send_header("Content-Length", str(last - first + 1))
        for name, value in tag.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.cut(body[first : last + 1], deed))

    def cut(self, piece: bytes, deed: str) -> bytes:
        if "random" in deed:
            return piece[: self.server.chance.randrange(1, 2 * len(self.server.body) // 50)]
        return piece[: len(piece) // 2] if "cut" in deed else piece


class Server(ThreadingHTTPServer):
    """Says nothing when a client hangs up in the middle of an answer."""

    def handle_error(self, *args: object) -> None:
        pass


@contextmanager
def serving(body: bytes) -> Iterator[Server]:
    """The server, while the block runs: set its body, script, wait (Retry-After) and tag, and read its requests."""
    http = Server(("127.0.0.1", 0), Handler)
    http.body, http.script, http.requests, http.wait, http.tag = body, [], [], 0, '"one"'
    http.chance = random.Random(0)
    http.url = f"http://127.0.0.1:{http.server_port}/"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield http
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def make_zip(members: dict[str, bytes]) -> bytes:
    """A zip that holds these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return buffer.getvalue()


def make_tar(members: dict[str, bytes], link: str | None = None) -> bytes:
    """A tar.gz that holds these files and, if asked for, a link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as opened:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo("link")
            info.type, info.linkname = tarfile.SYMTYPE, link
            opened.addfile(info)
    return buffer.getvalue()
