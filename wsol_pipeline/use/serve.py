"""`Site` on Ray Serve: replicas that hold the model, and one address in front of them."""

import asyncio
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation
from starlette.requests import Request
from starlette.responses import Response

from wsol_pipeline import interrupts
from wsol_pipeline.errors import ResourceError, UsageError
from wsol_pipeline.training import cluster, ray_internals
from wsol_pipeline.training.localization import Localization
from wsol_pipeline.training.model import assemble
from wsol_pipeline.use.models import named
from wsol_pipeline.use.options import ServeOptions
from wsol_pipeline.use.site import Asked, Limits, Site, together

NAME = "wsol"  # of the application
READY = "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"
READY_SECONDS = "60"  # that a proxy may take to start: of a busy machine's Ray kills it after 5, with a traceback
BATCHES = 4  # of images that a replica has at hand: one at work, others being decoded


class Replica:
    """A model and its site. Images that wait while the network works make the next batch."""

    def __init__(self, files: Any, device: str, limits: Limits, batch_size: int) -> None:
        ray_internals.serve_on_loopback()
        self.model = assemble(ray.get(files), device)
        self.site = Site(self.model, limits, self.localize)
        self.localize.set_max_batch_size(batch_size)  # type: ignore[attr-defined]  # `serve.batch` adds it

    async def __call__(self, request: Request) -> Response:
        return await self.site(request)

    @serve.batch(max_batch_size=1, batch_wait_timeout_s=0)
    async def localize(self, asked: list[Asked]) -> list[list[Localization]]:
        """What is in each image, in the order of `asked`."""
        return await asyncio.to_thread(together, self.model, asked)


@contextmanager
def serving(options: ServeOptions) -> Iterator[str]:
    """Serve within, at the address that it gives, on a Ray of its own.

    Raises:
        UsageError: RAY_ADDRESS names a cluster.
        DataError: the model is broken.
        ResourceError: the port is taken, or there is no GPU of those that are asked for.
    """
    if "RAY_ADDRESS" in os.environ:
        raise UsageError("serve starts a Ray of its own on this machine, and ends it: unset RAY_ADDRESS.")
    files = named(options)
    assemble(files)  # a broken model is told here, in a line
    _require_free(options)
    os.environ.setdefault(READY, READY_SECONDS)
    cluster.connect(nested=False)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    kept = ray.put(files)  # held as long as a replica may be started again
    try:
        http = HTTPOptions(host=options.host, port=options.port)
        serve.start(proxy_location=ProxyLocation.HeadOnly, http_options=http, logging_config={"log_level": "ERROR"})
        serve.run(_application(options, kept), name=NAME, route_prefix="/", logging_config={"log_level": "ERROR"})
        interrupts.listen()
        yield f"http://{options.host}:{options.port}"
        serve.delete(NAME)  # `serve.shutdown` would kill its controller, which Ray then reports as a failure
    finally:
        ray.shutdown()


def _application(options: ServeOptions, files: Any) -> Any:
    device = cluster.pick_device(options.device)
    share = max(1, ray_internals.cores() // options.replicas)
    kind = "GPU" if device == "cuda" else "CPU"
    if options.replicas > (have := int(ray.cluster_resources().get(kind, 0))):
        raise ResourceError(f"--replicas {options.replicas} need a {kind} each but this machine has {have}.")
    limits = Limits(int(options.max_mib * 2**20), int(options.max_megapixels * 1e6), options.token, options.is_loopback)
    made = serve.deployment(
        num_replicas=options.replicas,
        max_ongoing_requests=BATCHES * options.batch_size,
        max_queued_requests=options.queue,
        ray_actor_options={"num_gpus": 1} if device == "cuda" else {"num_cpus": share},
    )(Replica)
    return made.bind(files, device, limits, options.batch_size)


def _require_free(options: ServeOptions) -> None:
    """Serve looks for its port once all is started, and tells that it is taken by a traceback."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((options.host, options.port))
    except OSError as error:
        raise ResourceError(f"Cannot listen on {options.host}:{options.port}: {error.strerror or error}.") from error
