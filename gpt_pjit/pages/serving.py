"""A page on this machine, made anew for each visit."""

from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from gpt_pjit.core.errors import ConfigError

LOOPBACK = "127.0.0.1"


def serve(make: Callable[[], str], port: int) -> HTTPServer:
    """A server that listens on loopback and gives what `make` returns; ConfigError if it cannot.

    Port 0 is a free one. A ConfigError of `make` is shown to the visitor.
    """
    try:
        return HTTPServer((LOOPBACK, port), partial(_Visit, make))
    except OSError as error:
        problem = f"port {port}: {error.strerror}; try another, --serve={port + 1}"
        raise ConfigError([problem], "--serve") from None


class _Visit(BaseHTTPRequestHandler):
    def __init__(self, make: Callable[[], str], *args: Any):
        self.make = make
        super().__init__(*args)

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").rpartition(":")[0]
        if host not in (LOOPBACK, "localhost"):  # another site, whose name leads to this machine
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        if self.path != "/":
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            text, status, kind = self.make(), HTTPStatus.OK, "html"
        except ConfigError as error:
            text, status, kind = f"{error}\n", HTTPStatus.SERVICE_UNAVAILABLE, "plain"
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"text/{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass
