"""Where a long pass of a network over images is done: here, or on a node of the cluster that has a GPU."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import ray
import torch
from ray.util.queue import Empty, Queue

from wsol_pipeline.errors import ResourceError
from wsol_pipeline.storage import Store
from wsol_pipeline.training import cluster
from wsol_pipeline.verdict.options import EvaluateOptions, SolveOptions
from wsol_pipeline.verdict.score import Progress, silent

T = TypeVar("T")
LOOK = 0.5  # seconds between looks at what a worker has told


def somewhere(
    work: Callable[..., T], options: EvaluateOptions | SolveOptions, *args: Any, progress: Progress = silent
) -> T:
    """`work(options, *args, progress)` here; or on a node with a GPU, if this is a job on a cluster that has or may get
    one.

    There it has the GPU's share of its node's cores. What it tells `progress` is told here, what it raises is raised.
    Raises `ResourceError` if its node died again and again.
    """
    if not ray.is_initialized() or cluster.pick_device(options.device, options.cluster_may_grow) == "cpu":
        return work(options, *args, progress)  # a worker would first import for seconds what is here already
    cpus, told = cluster.gpu_share(), Queue(actor_options={"num_cpus": 0})
    try:
        task: Any = ray.remote(_work).options(num_gpus=1, num_cpus=cpus)
        return _shown(task.remote(work, (anywhere(options), *args), cpus, told), told, progress)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise ResourceError(f"The worker died ({str(error).splitlines()[0]}): the same command continues.") from error
    finally:
        told.shutdown()


def anywhere(options: EvaluateOptions | SolveOptions) -> EvaluateOptions | SolveOptions:
    """The options with places that are the same to a process in another folder."""
    data = options.data and Store.at(options.data).uri
    return dataclasses.replace(options, storage=options.store.uri, data=data)


def _work(work: Callable[..., T], args: tuple[Any, ...], cpus: int, told: Queue) -> T:
    torch.set_num_threads(cpus)  # Ray leaves a task one

    @contextlib.contextmanager
    def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
        told.put((what, total))
        yield told.put
        told.put(None)

    return work(*args, progress)


def _shown(result: Any, told: Queue, progress: Progress) -> Any:
    """The result once it is there; until then passes are shown, each until it ends or the next one begins."""
    with contextlib.ExitStack() as passes:
        add: Callable[[int], object] = int
        while True:
            is_done = bool(ray.wait([result], timeout=0)[0])
            with contextlib.suppress(Empty):
                while True:
                    said = told.get(timeout=LOOK) if not is_done else told.get_nowait()
                    if not isinstance(said, int):
                        passes.close()
                    if isinstance(said, tuple):
                        add = passes.enter_context(progress(*said))
                    elif said is not None:
                        add(said)
            if is_done:
                return ray.get(result)
