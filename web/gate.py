"""Filters the requests to the page before they reach Gradio.

Gradio serves more than the page needs: it fetches URLs for clients, converts videos with ffmpeg, and stores pages. This
filter passes only the requests that the page makes, and limits their size and the disk space of the visitors' files.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Awaitable, Callable, Container, MutableMapping
from pathlib import Path
from typing import Any, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_UPLOAD = 200_000_000  # bytes of one request
MAX_EVENT = 64_000  # bytes of the description of an event
MAX_STORED = 4_000_000_000  # bytes of all files that visitors have uploaded or can download

_READ = re.compile(
    r"/(config/?|theme\.css|favicon\.ico|manifest\.json|robots\.txt|(assets|static|svelte)/.+"
    r"|gradio_api/(app_id|info|startup-events|theme\.css|upload_progress|queue/data|heartbeat/[\w-]+"
    r"|file=/.+))?"
)
_UPLOAD = "/gradio_api/upload"
_EVENT = re.compile(r"/gradio_api/(queue/join|run/predict|cancel)/?")
_SESSION = re.compile(r"[\w-]{1,64}", re.ASCII)


class Refused(Exception):
    """A request is refused. The arguments are the HTTP status and the reason."""


class Gate:
    """ASGI middleware that passes only the requests that the page makes.

    Args:
        app: the ASGI application that gets the passed requests.
        cache: Gradio's folder for files. A client may name only files in this folder.
        folder: the folder of all files of visitors, including `cache`.
        events: the numbers of the page's events.
        keep_s: seconds after which the partial file of a broken upload is deleted.
    """

    def __init__(self, app: Any, cache: Path, folder: Path, events: Container[int], keep_s: float) -> None:
        self.app, self.cache, self.folder, self.events, self.keep_s = app, cache, folder, events, keep_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with the reason why it is refused."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        try:
            await self.app(scope, await self._checked(scope, receive), send)
        except Refused as refused:
            status, reason = refused.args
            body = json.dumps({"detail": reason}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    async def _checked(self, scope: Scope, receive: Receive) -> Receive:
        """Check a request. Returns the function by which the application reads its content. Raises Refused."""
        path = scope["path"]
        if scope["type"] != "http":
            raise Refused(404, "not found")
        if scope["method"] in ("GET", "HEAD") and _READ.fullmatch(path):
            return receive
        if scope["method"] == "POST" and path == _UPLOAD:
            _check_length(scope, MAX_UPLOAD)
            self._check_room()
            return receive
        if scope["method"] == "POST" and _EVENT.fullmatch(path):
            _check_length(scope, MAX_EVENT)
            content = await _content(receive)
            self._check_event(content)
            if "join" in path:
                self._check_room()
            return _again(content, receive)
        raise Refused(404, "not found")

    def _check_event(self, content: bytes) -> None:
        """Raise Refused unless this is the JSON of an event of the page, and names only files in the cache."""
        try:
            event = json.loads(content, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise Refused(400, "expected JSON") from error
        if not isinstance(event, dict):
            raise Refused(400, "expected a JSON object")
        session = event.get("session_hash")
        if not isinstance(session, str) or not _SESSION.fullmatch(session):
            raise Refused(400, "session_hash: expected 1 to 64 letters and digits")
        number = event.get("fn_index")
        if number is not None and (type(number) is not int or number not in self.events):
            raise Refused(400, "fn_index: there is no such event")
        self._check_files(event)

    def _check_files(self, event: object) -> None:
        """Raise Refused unless every file that the event names is in the cache."""
        values = [event]
        while values:
            value = values.pop()
            if isinstance(value, dict):
                values += value.values()
                path = value.get("path")
                if path is not None and not (isinstance(path, str) and "\0" not in path and self._in_cache(path)):
                    raise Refused(400, "path: expected a file that was sent here")
            elif isinstance(value, list):
                values += value

    def _in_cache(self, path: str) -> bool:
        """Return whether a path, after following links, is in the cache."""
        try:
            return self.cache.resolve() in Path(path).resolve().parents
        except (OSError, ValueError, RuntimeError):
            return False

    def _check_room(self) -> None:
        """Raise Refused if the visitors' files fill MAX_STORED. Deletes the old files of broken uploads first."""
        now, stored = time.time(), 0
        for folder, _, names in os.walk(self.folder):
            for path in (Path(folder) / name for name in names):
                with contextlib.suppress(FileNotFoundError):
                    facts = path.lstat()
                    if path.parent == self.cache and now - facts.st_mtime > self.keep_s:
                        path.unlink()  # the partial file of a broken upload, which Gradio does not delete
                    else:
                        stored += facts.st_size
        if stored > MAX_STORED:
            raise Refused(503, "The disk space for visitors is used up. Please try again in an hour.")


def _refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, which Python's json accepts by default."""
    raise ValueError(f"{name} is no JSON")


def _check_length(scope: Scope, most: int) -> None:
    """Raise Refused unless a request states its length in bytes, and it is at most `most`."""
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    if len(lengths) != 1 or not re.fullmatch(rb"\d{1,18}", lengths[0]):
        raise Refused(411, "expected a Content-Length")
    if int(lengths[0]) > most:
        raise Refused(413, f"expected at most {most:,} bytes")


async def _content(receive: Receive) -> bytes:
    """Read the whole content of a request. The server limits it to its Content-Length."""
    content, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "broken off")
        content += message.get("body", b"")
        more = message.get("more_body", False)
    return content


def _again(content: bytes, receive: Receive) -> Receive:
    """Return a function like `receive` that first returns the content that was already read."""
    messages = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive_again() -> MutableMapping[str, Any]:
        return messages.pop() if messages else await receive()

    return receive_again
