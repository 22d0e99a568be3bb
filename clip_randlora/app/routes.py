"""What the page gets beside Gradio's routes: images, downloads, and its own files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

import clip_randlora as cr
from clip_randlora.adapters.io.adapter_files import FILE_NAME as ADAPTER
from clip_randlora.app.downloads import zip_images
from clip_randlora.app.pictures import LARGE, THUMBNAIL
from clip_randlora.app.service import Service

PAGE = Path(__file__).with_name("page")
_FOREVER = {"Cache-Control": "private, max-age=31536000, immutable"}


def routes(service: Service) -> list[BaseRoute]:
    """Return the routes of an app, which come before Gradio's."""
    return [
        Route("/picture/{key}", _answering(service, _picture)),
        Route("/download/{folder}/{file}", _answering(service, _download)),
        Mount("/page", StaticFiles(directory=PAGE)),
    ]


def _answering(
    service: Service, function: Callable[[Service, Request], Response]
) -> Callable[[Request], Response]:
    """Return a route's function, which answers 404 where the file is not there."""

    def answer(request: Request) -> Response:
        try:
            return function(service, request)
        except (cr.UserError, FileNotFoundError):
            return PlainTextResponse("This file is not there any more.", 404)

    return answer


def _picture(service: Service, request: Request) -> Response:
    """Serve a gathered image as a small JPEG, ``?large`` as a larger one."""
    workspace = service.workspaces.of(service.visitor(request))
    number = request.path_params["key"].split("-")[0]
    picture = workspace.picture(int(number) if number.isdigit() else 0)
    side = LARGE if "large" in request.query_params else THUMBNAIL
    return FileResponse(workspace.thumbnails.path(picture, side), headers=_FOREVER)


def _download(service: Service, request: Request) -> Response:
    """Serve an export, the adapter of a run or the images of a class, under a name of its own."""
    workspace = service.workspaces.of(service.visitor(request))
    folder, file = request.path_params["folder"], request.path_params["file"]
    if folder == "class":
        path = zip_images(workspace, file)
        return FileResponse(path, filename=f"{file}.zip")
    if folder != "downloads" and file == ADAPTER:
        path = workspace.folder / "runs" / workspace.runs.find(folder)[1].id / ADAPTER
    elif folder == "downloads" and re.fullmatch(r"[\w.-]+", file):
        path = workspace.downloads / file
    else:
        raise FileNotFoundError
    if not path.is_file():
        raise FileNotFoundError
    return FileResponse(path, filename=request.query_params.get("name") or path.name)
