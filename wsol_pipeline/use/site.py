"""What `wsol serve` answers: a page, the model's facts, and what is in an image; every refusal a status and a line.

    GET  /               the page
    GET  /api/model      classes, threshold, limits
    POST /api/localize   an encoded image -> JSON; ?threshold= label= top= conf= boxes= max_det= min_area= pictures=1

It knows nothing of Ray: requests come in, responses go out, and `localize` is whoever does the work.
"""

import asyncio
import base64
import hmac
import io
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from wsol_pipeline.data.headers import probe
from wsol_pipeline.data.photographs import FORMATS, photograph
from wsol_pipeline.errors import DataError, UsageError, unknown
from wsol_pipeline.training.inputs import Prepared
from wsol_pipeline.training.localization import Localization, Wanted
from wsol_pipeline.training.model import Model
from wsol_pipeline.use.options import LOOPBACK

BODY_SECONDS = 30  # that a request may take to arrive
OPTIONS: dict[str, Callable[[str], Any]] = {
    "threshold": lambda text: text if text == "otsu" else float(text),
    "top": int, "conf": float, "boxes": str, "max_det": int, "min_area": float,
}  # fmt: skip
OTHERS = ("label", "pictures")
HEADERS = {
    "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'",
}  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What a request may be, and what it must bear."""

    bytes: int
    pixels: int
    token: str  # none if it is empty
    loopback: bool  # answer those alone who call this machine by its own name: a page elsewhere cannot then ask


@dataclass(frozen=True)
class Asked:
    """An image, ready for the network, and what is asked of it."""

    prepared: Prepared
    wanted: Wanted
    given: tuple[int, ...] | None


class Refused(Exception):
    """A request that is answered by a status and a line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


Localize = Callable[[Asked], Awaitable[list[Localization]]]


class Site:
    """`await site(request)`: the answer to a request."""

    def __init__(self, model: Model, limits: Limits, localize: Localize) -> None:
        self.model, self.limits, self.localize = model, limits, localize
        self.routes = {
            "/": ("GET", self._page),
            "/api/model": ("GET", self._model),
            "/api/localize": ("POST", self._find),
        }

    async def __call__(self, request: Request) -> Response:
        try:
            response = await self._answer(request)
        except Refused as error:
            response = JSONResponse({"error": str(error)}, error.status)
        except UsageError as error:
            response = JSONResponse({"error": str(error)}, 400)
        except DataError as error:
            response = JSONResponse({"error": str(error)}, 422)
        response.headers.update(HEADERS)
        return response

    async def _answer(self, request: Request) -> Response:
        self._require_own_name(request)
        if request.url.path not in self.routes:
            raise Refused(404, f"There is no {request.url.path}; known: {', '.join(self.routes)}.")
        method, answer = self.routes[request.url.path]
        if request.method != method:
            raise Refused(405, f"{request.url.path} answers {method} but got {request.method}.")
        return await answer(request)

    def _require_own_name(self, request: Request) -> None:
        """A name that some site's owner points at this machine would let that site's page read what we answer."""
        name = request.headers.get("host", "").rpartition(":")[0] or request.headers.get("host", "")
        if self.limits.loopback and name not in LOOPBACK:
            raise Refused(403, f"This server is {LOOPBACK[0]} or {LOOPBACK[1]} but was called {name!r}.")

    def _require_token(self, request: Request) -> None:
        told = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.limits.token and not hmac.compare_digest(told.encode(), self.limits.token.encode()):
            raise Refused(401, "A token is needed: the header must say Authorization: Bearer TOKEN.")

    async def _page(self, request: Request) -> Response:
        return HTMLResponse(Path(__file__).with_name("site.html").read_text())

    async def _model(self, request: Request) -> Response:
        self._require_token(request)
        model = self.model
        return JSONResponse({
            "classes": model.classes, "multilabel": model.multilabel, "method": model.config.method,
            "backbone": model.config.backbone, "threshold": None if model.cuts_own_mask else model.threshold,
            "max_bytes": self.limits.bytes, "max_pixels": self.limits.pixels,
        })  # fmt: skip

    async def _find(self, request: Request) -> Response:
        self._require_token(request)
        wanted, given, pictures = self._options(request.query_params)
        data = await self._body(request)
        asked = await asyncio.to_thread(self._prepare, data, wanted, given)
        found = await self.localize(asked)
        return JSONResponse(await asyncio.to_thread(answer, found, pictures))

    def _options(self, told: Mapping[str, str]) -> tuple[Wanted, tuple[int, ...] | None, bool]:
        for name in told:
            if name not in (*OPTIONS, *OTHERS):
                raise unknown("parameter", name, (*OPTIONS, *OTHERS))
        given = (self.model.class_id(told["label"]),) if told.get("label") else None
        if given and "top" in told:
            raise UsageError(f"label and top exclude each other but got label={told['label']} and top={told['top']}.")
        wanted = Wanted(**{name: _read(name, told[name]) for name in OPTIONS if told.get(name)})
        self.model.check(wanted)
        return wanted, given, told.get("pictures", "0") == "1"

    async def _body(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0]
        if not (kind.startswith("image/") or kind == "application/octet-stream"):  # a form elsewhere cannot say these
            raise Refused(
                415, f"Content-Type must be image/... or application/octet-stream but is {kind or 'missing'!r}."
            )
        told = request.headers.get("content-length", "0")
        self._require_size(int(told) if told.isdecimal() else 0)
        data = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    data += part
                    self._require_size(len(data))
        except TimeoutError as error:
            raise Refused(408, f"The image took over {BODY_SECONDS} s to arrive.") from error
        except ClientDisconnect as error:
            raise Refused(400, "The image did not arrive whole.") from error
        return bytes(data)

    def _require_size(self, size: int) -> None:
        if size > self.limits.bytes:
            raise Refused(413, f"A request may have {self.limits.bytes} bytes but this one has {size} or more.")

    def _prepare(self, data: bytes, wanted: Wanted, given: tuple[int, ...] | None) -> Asked:
        if data:
            _, width, height = probe(data, FORMATS)
            if width * height > self.limits.pixels:
                raise Refused(413, f"An image may have {self.limits.pixels} pixels but this one has {width}x{height}.")
        return Asked(self.model.prepare(photograph(data)[0]), wanted, given)


def _read(name: str, text: str) -> Any:
    try:
        return OPTIONS[name](text)
    except ValueError as error:
        raise UsageError(f"{name} must be a number but got {text!r}.") from error


def answer(found: list[Localization], pictures: bool) -> dict[str, Any]:
    """What was found as JSON; with `pictures` each one's map (grey PNG, of `window`) and mask (PNG, of the image)."""
    own = [one.to_dict() | {"rle": one.rle if one.box else None} for one in found]
    if pictures:
        own = [
            told | {"map": png(255 * one.map_HW.clip(0, 1)), "mask": png(255 * one.mask)}
            for told, one in zip(own, found, strict=True)
        ]
    return {"width": found[0].width, "height": found[0].height, "found": own}


def png(values_HW: NDArray[Any]) -> str:
    """Values 0..255, [H, W], as the data URI of a PNG."""
    sink = io.BytesIO()
    Image.fromarray(np.rint(values_HW).astype(np.uint8)).save(sink, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(sink.getvalue()).decode()


def together(model: Model, asked: list[Asked]) -> list[list[Localization]]:
    """What is in each of some images, in as few passes as their options allow."""
    found: list[list[Localization]] = [[] for _ in asked]
    for wanted in dict.fromkeys(one.wanted for one in asked):
        at = [i for i, one in enumerate(asked) if one.wanted == wanted]
        own = model.localize([asked[i].prepared for i in at], wanted, [asked[i].given for i in at])
        for i, one in zip(at, own, strict=True):
            found[i] = one
    return found
