"""What `wsol serve` answers, without Ray: boxes as `predict` has them, and a status and a line for all else."""

import asyncio
import base64
import io
import json
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.requests import Request

import wsol
from rayjobs import serve
from tests.use.conftest import paint
from wsol_pipeline.errors import DataError, ResourceError, UsageError
from wsol_pipeline.training.inputs import pixels_of
from wsol_pipeline.training.localization import Wanted
from wsol_pipeline.use import site as sites
from wsol_pipeline.use.options import ServeOptions
from wsol_pipeline.use.site import Asked, Limits, Site, together

TOKEN = "a-token-of-sixteen"
IMAGE = [("content-type", "image/png")]


@pytest.fixture(scope="module")
def model(final):
    return wsol.load_model(final.uri, "cpu")


@pytest.fixture
def ask(model):
    """`ask(path, body, headers, parts, **limits)`: status, and the answer's JSON or text."""

    def start(path, body=None, headers=IMAGE, parts=1, **limits):
        async def localize(asked):
            return together(model, [asked])[0]

        bounds = {"bytes": 10_000, "pixels": 10_000, "token": "", "loopback": True} | limits
        site = Site(model, Limits(**bounds), localize)
        path, _, query = path.partition("?")
        told = {"host": "127.0.0.1:8000"} | dict(headers)
        scope = {
            "type": "http", "method": "GET" if body is None else "POST", "path": path, "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in told.items()],
        }  # fmt: skip
        size = -(-len(body or b"") // parts)
        rest = [(body or b"")[at * size : (at + 1) * size] for at in range(parts)]

        async def receive():
            if not rest:
                await asyncio.sleep(60)
            return {"type": "http.request", "body": rest.pop(0), "more_body": bool(rest) or parts == 3}

        response = asyncio.run(site(Request(scope, receive)))
        assert response.headers["x-content-type-options"] == "nosniff"
        text = response.body.decode()
        return response.status_code, json.loads(text) if path.startswith("/api") or text[0] == "{" else text

    return start


@pytest.fixture
def photograph(tmp_path) -> Path:
    return paint(tmp_path / "one.png", 1)


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("", {}),
        ("?threshold=0.2", {"threshold": 0.2}),
        ("?threshold=otsu&boxes=all&max_det=3", {"threshold": "otsu", "boxes": "all", "max_det": 3}),
        ("?label=ring", {"labels": "ring"}),
        ("?top=2", {"top": 2}),
        ("?conf=0.99", {"conf": 0.99}),
    ],
)
def test_an_image_is_answered_by_what_predict_says(ask, model, photograph, query, options):
    status, told = ask(f"/api/localize{query}", photograph.read_bytes())
    assert status == 200
    expected = model.predict(str(photograph), **options)
    assert (told["width"], told["height"]) == (60, 44)
    for one, own in zip(told["found"], expected, strict=True):
        assert one == json.loads(json.dumps(own.to_dict() | {"path": None, "rle": own.rle if own.box else None}))


def test_the_pictures_are_the_map_and_the_mask(ask, model, photograph):
    (found,) = ask("/api/localize?pictures=1&threshold=0.3", photograph.read_bytes())[1]["found"]
    (expected,) = model.predict(str(photograph), threshold=0.3)

    def shown(name):
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(found[name].partition(",")[2]))))

    np.testing.assert_array_equal(shown("mask") > 127, expected.mask)
    np.testing.assert_allclose(shown("map") / 255, expected.map_HW, atol=0.5 / 255 + 1e-6)


def test_the_page_and_the_facts(ask, model):
    status, page = ask("/")
    assert status == 200
    assert "<title>Where is it?</title>" in page
    assert "http" not in page  # nothing is fetched from elsewhere
    status, facts = ask("/api/model")
    assert (status, facts["classes"]) == (200, list(model.classes))
    assert (facts["threshold"], facts["max_bytes"]) == (model.threshold, 10_000)


def png(width, height):
    sink = io.BytesIO()
    Image.new("RGB", (width, height)).save(sink, "PNG")
    return sink.getvalue()


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        ("/nothing", None, 404, "There is no /nothing; known: /, /api/model, /api/localize"),
        ("/api/localize", None, 405, "answers POST but got GET"),
        ("/api/model", b"x", 405, "answers GET but got POST"),
        ("/api/localize", b"", 422, "image is empty: 0 bytes"),
        ("/api/localize", b"<html>not an image</html>", 422, "image is not a readable JPEG"),
        ("/api/localize", png(60, 44)[:60], 422, "image cannot be decoded"),
        ("/api/localize", png(200, 100), 413, "may have 10000 pixels but this one has 200x100"),
        ("/api/localize", bytes(10_001), 413, "may have 10000 bytes but this one has 10001 or more"),
        ("/api/localize?threshold=1.5", png(9, 9), 400, "0 <= τ < 1, or 'otsu' but got 1.5"),
        ("/api/localize?threshold=nan", png(9, 9), 400, "0 <= τ < 1, or 'otsu' but got nan"),
        ("/api/localize?threshold=-0.1", png(9, 9), 400, "but got -0.1"),
        ("/api/localize?threshold=high", png(9, 9), 400, "threshold must be a number but got 'high'"),
        ("/api/localize?label=rign", png(9, 9), 400, "Did you mean 'ring'"),
        ("/api/localize?label=ring&top=2", png(9, 9), 400, "label and top exclude each other"),
        ("/api/localize?boxes=some", png(9, 9), 400, "boxes must be 'largest' or 'all'"),
        ("/api/localize?treshold=0.5", png(9, 9), 400, "Did you mean 'threshold'"),
    ],
)  # fmt: skip
def test_a_refusal_is_a_status_and_a_line(ask, path, body, status, told):
    got, answer = ask(path, body)
    assert got == status
    assert "\n" not in answer["error"]
    assert told in answer["error"]


def test_one_pixel_is_an_image_and_its_box_lies_in_it(ask):
    for size in ((1, 1), (3000, 3)):
        status, told = ask("/api/localize?threshold=0", png(*size))
        assert status == 200
        for one in told["found"]:
            x0, y0, x1, y1 = one["box"] or (0, 0, 1, 1)
            assert 0 <= x0 < x1 <= size[0]
            assert 0 <= y0 < y1 <= size[1]


def test_a_body_is_counted_as_it_comes_and_refused_by_what_it_says(ask):
    assert ask("/api/localize", bytes(30_000), parts=3)[0] == 413  # the last part never comes
    assert ask("/api/localize", b"x", headers=[*IMAGE, ("content-length", "99999999")])[0] == 413


def test_a_body_that_does_not_end_is_given_up(ask, monkeypatch):
    monkeypatch.setattr(sites, "BODY_SECONDS", 0.05)
    status, told = ask("/api/localize", bytes(9), parts=3)
    assert (status, "took over 0.05 s to arrive" in told["error"]) == (408, True)


def test_a_form_of_another_site_is_refused(ask, photograph):
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", ""):
        assert ask("/api/localize", photograph.read_bytes(), headers=[("content-type", kind)])[0] == 415


def test_another_name_of_this_machine_is_refused_but_where_others_may_ask(ask):
    other = [("host", "evil.example:8000")]
    status, told = ask("/api/model", headers=other)
    assert (status, "was called 'evil.example'" in told["error"]) == (403, True)
    assert ask("/", headers=other)[0] == 403
    assert ask("/api/model", headers=other, loopback=False)[0] == 200
    assert ask("/api/model", headers=[("host", "localhost")])[0] == 200


def test_who_has_no_token_is_told_nothing_but_the_page(ask, photograph):
    for headers in ([], [("authorization", "Bearer other")], [("authorization", "Bearer ")], [("authorization", "é")]):
        assert ask("/api/model", headers=headers, token=TOKEN)[0] == 401
        status, told = ask("/api/localize", photograph.read_bytes(), headers=[*IMAGE, *headers], token=TOKEN)
        assert (status, "Authorization: Bearer" in told["error"]) == (401, True)
    assert ask("/", token=TOKEN)[0] == 200
    own = [*IMAGE, ("authorization", f"Bearer {TOKEN}")]
    assert ask("/api/localize", photograph.read_bytes(), headers=own, token=TOKEN)[0] == 200


def test_images_that_wait_together_are_answered_as_each_alone(model, tmp_path):
    images = [pixels_of(paint(tmp_path / f"{seed}.png", seed)) for seed in range(4)]
    wanted = [Wanted(), Wanted(threshold=0.2), Wanted(), Wanted(top=2)]
    asked = [Asked(model.prepare(pixels), own, None) for pixels, own in zip(images, wanted, strict=True)]
    for many, one in zip(together(model, asked), asked, strict=True):
        alone = together(model, [one])[0]
        assert [(found.label, found.box) for found in many] == [(found.label, found.box) for found in alone]


def test_a_host_for_others_needs_a_token(monkeypatch):
    monkeypatch.delenv("WSOL_SERVE_TOKEN", raising=False)
    with pytest.raises(UsageError, match="WSOL_SERVE_TOKEN .* 16 characters .* but got '0.0.0.0'"):
        ServeOptions(model="m", host="0.0.0.0")
    monkeypatch.setenv("WSOL_SERVE_TOKEN", "short")
    with pytest.raises(UsageError, match="16 characters"):
        ServeOptions(model="m", host="0.0.0.0")
    monkeypatch.setenv("WSOL_SERVE_TOKEN", TOKEN)
    assert ServeOptions(model="m", host="0.0.0.0").token == TOKEN


@pytest.mark.parametrize(
    ("more", "error", "match"),
    [
        ([], UsageError, "a model is needed"),
        (["--model", "m", "--port", "70000"], UsageError, "port must be in 1..65535 but got 70000"),
        (["--model", "m", "--max-mib", "nan"], UsageError, "max_mib must be in 0 < m <= 64 but got nan"),
        (["--model", "m", "--replicas", "0"], UsageError, "replicas must be at least 1"),
        (["--model", "no/such/folder"], DataError, "There is no model at no/such/folder"),
    ],
)
def test_what_cannot_be_served_is_told_before_ray_starts(more, error, match, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(error, match=match):
        serve.main(more)


def test_a_cluster_and_a_taken_port_are_refused(final, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=f"Cannot listen on 127.0.0.1:{port}: Address already in use"):
            serve.main(["--model", final.uri, "--port", str(port)])
    monkeypatch.setenv("RAY_ADDRESS", "ray://elsewhere")
    with pytest.raises(UsageError, match="unset RAY_ADDRESS"):
        serve.main(["--model", final.uri])
