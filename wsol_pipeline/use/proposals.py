"""Where proposals come from: Selective Search in a child interpreter, or a detector."""

import os
import queue
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wsol_pipeline.data.images import resize_to
from wsol_pipeline.errors import ResourceError, UsageError

LONG_SIDE = 224  # pixels of an image that Selective Search is shown: larger ones take seconds
CHILD = Path(__file__).with_name("selective_search.py")
Find = Callable[[Sequence[Tensor]], list[NDArray[np.float64]]]  # uint8 images [3, H, W] -> boxes [N, 4] in their pixels


class SelectiveSearch:
    """An interpreter with opencv-contrib that answers image after image.

    Raises `UsageError` for one that cannot.
    """

    def __init__(self, python: str) -> None:
        safe = os.environ | {"PYTHONSAFEPATH": "1"}  # what lies beside the script is not for it to import
        try:
            self.process = subprocess.Popen(
                [python, str(CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=safe
            )
        except OSError as error:
            raise UsageError(f"--proposals-python {python} cannot be started: {error.strerror}.") from error
        assert self.process.stdin
        assert self.process.stdout
        self.source, self.sink = self.process.stdout, self.process.stdin
        if (told := self.source.readline().decode(errors="replace").strip()) != "ready":
            self.close()
            raise UsageError(
                f"--proposals-python {python} has no cv2.ximgproc.segmentation ({told or 'it said nothing'}), which "
                "Selective Search needs. It is in opencv-contrib-python-headless, which opencv-python-headless would "
                "overwrite: python -m venv ss && ss/bin/pip install opencv-contrib-python-headless, then "
                "--proposals-python ss/bin/python."
            )

    def __enter__(self) -> "SelectiveSearch":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()

    def __call__(self, image_CHW: Tensor) -> NDArray[np.float64]:
        """Proposals in pixels of the image, half-open, in Selective Search's order."""
        height, width = image_CHW.shape[1:]
        scale = min(1.0, LONG_SIDE / max(height, width))
        shape_HW = [max(1, round(scale * side)) for side in (height, width)]
        small_HWC = (resize_to(image_CHW, shape_HW) if scale < 1 else image_CHW).flip(0).permute(1, 2, 0).numpy()
        x_N, y_N, width_N, height_N = self._ask(small_HWC).T.astype(np.float64)
        boxes_N4 = np.stack([x_N, y_N, x_N + width_N, y_N + height_N], axis=1)
        return boxes_N4 * np.tile([width / shape_HW[1], height / shape_HW[0]], 2)

    def _ask(self, pixels_HWC: NDArray[np.uint8]) -> NDArray[np.int32]:
        height, width, _ = pixels_HWC.shape
        try:
            self.sink.write(b"%d %d\n" % (width, height) + pixels_HWC.tobytes())
            self.sink.flush()
            count = int(self.source.readline())
            return np.frombuffer(self.source.read(16 * count), "<i4").reshape(count, 4)
        except (OSError, ValueError) as error:  # it is gone: nothing to write to, or less to read than was said
            raise ResourceError(f"What --proposals-python started died at an image of {width}x{height}.") from error


@contextmanager
def selective_search(python: str, children: int) -> Iterator[Find]:
    """Selective Search by some interpreters at once."""
    with ExitStack() as stack:
        free: queue.SimpleQueue[SelectiveSearch] = queue.SimpleQueue()
        for _ in range(children):
            free.put(stack.enter_context(SelectiveSearch(python)))
        pool = stack.enter_context(ThreadPoolExecutor(children))

        def find(image_CHW: Tensor) -> NDArray[np.float64]:
            child = free.get()
            try:
                return child(image_CHW)
            finally:
                free.put(child)

        yield lambda images: list(pool.map(find, images))
