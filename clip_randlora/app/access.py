"""What is checked before every route: the password, and whose files are asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clip_randlora.app.workspaces import COOKIE, Workspaces, new_visitor

_API = "/gradio_api/"
_FILE = re.compile(_API + "file[=/](.*)", re.DOTALL)
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
_LARGEST_BODY = 16 * 2**20  # bytes, of what is no upload
_SECONDS_TO_KEEP = 365 * 24 * 3600  # the cookie, so that closing the browser loses nothing
PUBLIC_ROUTES = re.compile(
    "/|/login/?|/(static|assets|svelte|pwa_icon)/.*|/(favicon.ico|robots.txt|manifest.json)"
    "|/pwa_icon|(/gradio_api)?/theme.css|/gradio_api/(login_check/?|startup-events)"
)
"""The routes that need no password: the login page, its looks, and a call that Gradio makes to
itself, which starts the queue if it is not running."""


class AccessMiddleware:
    """Middleware that gives each visitor a secret cookie and refuses what is not theirs.

    - With a password set, every route but the `PUBLIC_ROUTES` answers 401 without it; Gradio itself
      asks on some of its routes only.
    - Files below the app's folder are served, and taken as input, for their owners only.
    - Pages of other sites may not call it.
    """

    def __init__(self, app: ASGIApp, workspaces: Workspaces):
        self.app, self.workspaces = app, workspaces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":  # there are no other routes than those of HTTP
                await self.app(scope, receive, send)
            return
        cookies, path = Request(scope).cookies, scope["path"]
        request = Request(scope)
        is_open = self.workspaces.settings.is_personal and scope["app"].auth is None
        if _is_from_another_site(request) or (is_open and not _is_asked_as_local(request)):
            await _refuse(403, "Another site may not call this app")(scope, receive, send)
            return
        visitor = self.workspaces.visitor(cookies)
        if visitor is None:
            visitor = new_visitor()
            scope, send = _with_cookie(scope, visitor), _send_with_cookie(scope, visitor, send)
        if not _is_authenticated(scope["app"], cookies) and not PUBLIC_ROUTES.fullmatch(path):
            await _refuse(401, "Not authenticated")(scope, receive, send)
            return
        file = _FILE.fullmatch(path)
        if file and not self.workspaces.owns(visitor, file[1]):
            await _refuse(403, "Not a file of yours")(scope, receive, send)
        elif path.rstrip("/") == _API + "upload":
            await self.app(scope, receive, self._claim_uploads(visitor, send))
        elif scope["method"] == "POST" and path.startswith(_API):
            await self._check_body(visitor, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _check_body(self, visitor: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on, unless it names somebody else's file."""
        body = bytearray()
        try:
            async for part in Request(scope, receive).stream():
                body += part
                if len(body) > _LARGEST_BODY:
                    await _refuse(413, "Too large")(scope, receive, send)
                    return
        except ClientDisconnect:
            return
        try:
            named = list(_paths(json.loads(bytes(body)))) if body else []
        except (ValueError, RecursionError):  # the route takes JSON only, and says so
            named = []
        if any(self.workspaces.has(p) and not self.workspaces.owns(visitor, p) for p in named):
            await _refuse(403, "Not a file of yours")(scope, receive, send)
            return
        replayed = iter([{"type": "http.request", "body": bytes(body), "more_body": False}])

        async def replay() -> Message:
            return next(replayed, None) or await receive()

        await self.app(scope, replay, send)

    def _claim_uploads(self, visitor: str, send: Send) -> Send:
        """Note whose the uploaded files are that the answer names, before it is sent."""
        held: list[Message] = []

        async def hold(message: Message) -> None:
            held.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                body = b"".join(part.get("body", b"") for part in held)
                if held[0]["status"] == 200:
                    self.workspaces.add_uploads(visitor, json.loads(body))
                for part in held:
                    await send(part)

        return hold


def _is_from_another_site(request: Request) -> bool:
    """Return whether a page of another site calls, as a browser says it.

    Without cookies, which a personal app does not need, nothing else would keep it out.
    """
    if request.method in ("GET", "HEAD"):
        return False
    origin = request.headers.get("origin", "")
    same = urlsplit(origin).netloc == request.headers.get("host", "")
    return bool(origin) and not same and request.headers.get("sec-fetch-site") != "same-origin"


def _is_asked_as_local(request: Request) -> bool:
    """Return whether the address that was asked for is this machine's own.

    A site may let its own name lead here, and its pages then count as the app's.
    """
    return request.url.hostname in LOCAL_HOSTS


def _is_authenticated(app: Any, cookies: dict[str, str]) -> bool:
    """Return whether there is no password, or whoever asks has given it, as Gradio notes it."""
    if app.auth is None:
        return True
    names = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
    return any(cookies.get(name) in app.tokens for name in names)


def _refuse(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"detail": {"error": reason}}, status)


def _with_cookie(scope: Scope, visitor: str) -> Scope:
    """Return the request as if it had brought the cookie that its answer sets."""
    before = [value for name, value in scope["headers"] if name == b"cookie"]
    headers = [(name, value) for name, value in scope["headers"] if name != b"cookie"]
    cookie = b"; ".join([*before, f"{COOKIE}={visitor}".encode()])
    return {**scope, "headers": [*headers, (b"cookie", cookie)]}


def _send_with_cookie(scope: Scope, visitor: str, send: Send) -> Send:
    answer = Response()
    is_secure = scope["scheme"] == "https"
    answer.set_cookie(
        COOKIE, visitor, _SECONDS_TO_KEEP, secure=is_secure, httponly=True, samesite="lax"
    )

    async def send_with_cookie(message: Message) -> None:
        if message["type"] == "http.response.start":
            message.setdefault("headers", [])
            MutableHeaders(scope=message).append("set-cookie", answer.headers["set-cookie"])
        await send(message)

    return send_with_cookie


def _paths(value: Any) -> Iterator[str]:
    """Find the paths of all files that a call's JSON names."""
    if isinstance(value, dict):
        if isinstance(value.get("path"), str):
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _paths(part)
