"""Selective Search in an interpreter that has opencv-contrib: started by `proposals`, it imports nothing of ours.

Says "ready" or why not in a line. Then, for each image on stdin (a line "width height", then its pixels, blue first):
a line with the number of proposals, then x, y, width, height of each, int32, in Selective Search's order.
"""

import ctypes
import sys


def main() -> None:
    """Answer image after image until stdin ends."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer

    def say(data: bytes) -> None:
        sink.write(data)
        sink.flush()

    try:
        import cv2
        import numpy as np

        make = getattr(cv2, "ximgproc").segmentation.createSelectiveSearchSegmentation  # noqa: B009
    except (ImportError, AttributeError) as error:
        say(f"{type(error).__name__}: {error}\n".encode())
        return
    cv2.setNumThreads(1)
    say(b"ready\n")
    while line := source.readline():
        width, height = map(int, line.split())
        pixels = np.frombuffer(source.read(3 * width * height), np.uint8).reshape(height, width, 3)
        ctypes.CDLL(None).srand(0)  # the order is drawn by C's generator: by the image alone, not by those before it
        search = make()
        search.setBaseImage(pixels)
        search.switchToSelectiveSearchFast()
        boxes = np.asarray(search.process(), "<i4")
        say(b"%d\n" % (boxes.size // 4) + boxes.tobytes())


if __name__ == "__main__":
    main()
