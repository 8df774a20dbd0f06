"""Boxes and IoUs of every mask of a level image, in one pass from its highest pixel down.

Lowering the threshold only adds pixels, so components are born, grow and merge: a union-find over them follows all
masks at once. A pixel whose earlier neighbours form one arc joins that arc's component, which is nearly every pixel of
a smooth map; only births and merges touch the union-find.

Equal to thresholding, `cv2.findContours` and `cv2.contourArea` at each level, ties included.

All kernels and their tables stay in this file: numba's cache notices a change of the caller's file only.
"""

import numpy as np
from numpy.typing import NDArray

from wsol_pipeline import compiled
from wsol_pipeline.evaluation.levels import Levels

BOX_RULES = ("largest_contour", "all_contours", "largest_component", "whole_mask", "components")

X0, Y0, X1, Y1, AREA, FIRST, PARENT, CHANGED = range(8)  # a component: its box (inclusive, in padded pixels) and state
NONE = np.uint32(2**32 - 1)

jit = compiled.jit(error_model="numpy")


def boxes_per_mask(levels_HW: Levels, num_masks: int, box_rule: str) -> NDArray[np.int32]:
    """The largest box `x0y0x1y1` of each mask `levels_HW > t`, int32 [num_masks, 4], in the rule's own convention.

    "largest_contour" and "all_contours" take the contour of largest polygon area, of equals the one whose component
    comes last in raster order, maximum x+w and y+h cut to the image, (0, 0, 0, 0) for an empty mask.
    "largest_component" takes the 8-connected component of most pixels, of equals the first, exclusive maximum, the
    whole image for an empty mask.
    "whole_mask" and "components" take all pixels of the mask, inclusive maximum, the whole image for an empty mask.
    """
    if box_rule in ("whole_mask", "components"):
        return _whole(levels_HW, num_masks)
    return _largest(levels_HW, num_masks, box_rule != "largest_component")


def ious_per_mask(
    levels_HW: Levels, num_masks: int, truth_N4: NDArray[np.float64], box_rule: str
) -> NDArray[np.float64]:
    """The best IoU of any box of each mask `levels_HW > t` with any of `truth_N4`, float64 [num_masks].

    All boxes of the mask count under "all_contours" (holes' contours too) and "components" (4-connected, inclusive
    maximum), else the one of `boxes_per_mask`.
    """
    if box_rule in ("all_contours", "components"):
        return _all_boxes(levels_HW, num_masks, truth_N4, box_rule == "all_contours")
    boxes = boxes_per_mask(levels_HW, num_masks, box_rule)
    return ious_of_boxes(boxes, truth_N4)


def _arcs(mask: int) -> list[int]:
    """One neighbour of each 8-connected group of the neighbours in `mask`, the pixel itself left out."""
    touching = [(k, (k + 1) % 8) for k in range(8)] + [(1, 3), (3, 5), (5, 7), (7, 1)]
    group = list(range(8))
    for a, b in touching:
        if mask >> a & 1 and mask >> b & 1:
            group = [group[b] if g == group[a] else g for g in group]
    return sorted({group[k] for k in range(8) if mask >> k & 1})


def _doubled_area(mask: int) -> int:
    """What a pixel adds to twice the polygon area of its component when the neighbours in `mask` are there already.

    The outline runs through pixel centres: of the four 2x2 quads round a pixel, a full one has area 1, one with three
    pixels has area 1/2, any other has none.
    """
    quads = ((7, 0, 1), (1, 2, 3), (3, 4, 5), (5, 6, 7))
    return sum(sum(mask >> k & 1 for k in quad) >= 2 for quad in quads)


# The neighbours of a pixel, clockwise from north-west, are bits 0..7 of a mask that indexes these tables. ARCS are the
# neighbours to join where 8 count as connected, SIDES where 4 do.
ARCS = np.array([(_arcs(mask) + [-1] * 4)[:4] for mask in range(256)], np.int8)
SIDES = np.array([([k for k in (1, 3, 5, 7) if mask >> k & 1] + [-1] * 4)[:4] for mask in range(256)], np.int8)
POLYGON_AREA = np.array([_doubled_area(mask) for mask in range(256)], np.uint32)
PIXEL_COUNT = np.ones(256, np.uint32)


@jit
def _pad(levels_HW):  # type: ignore[no-untyped-def]
    """`levels_HW` in a frame of zeros. Rows are a power of two long: a flat index splits by shift and mask."""
    height, width = levels_HW.shape
    shift = 2
    while (1 << shift) < width + 2:
        shift += 1
    padded = np.zeros((height + 2, 1 << shift), np.uint16)
    padded[1 : height + 1, 1 : width + 1] = levels_HW
    return padded, shift


@jit
def _fill_holes(padded, width):  # type: ignore[no-untyped-def]
    """The level image whose masks are those of `padded` with their holes filled.

    Each pixel takes the lowest, over all 4-connected paths to the frame, of the highest level on the path
    (morphological reconstruction by erosion). Straight paths up and down come first and settle most pixels of a smooth
    map; sweeps down and up do the rest until nothing changes.
    """
    last = padded.shape[0] - 1
    filled = np.zeros_like(padded)
    for y in range(1, last):
        above, here, level = filled[y - 1], filled[y], padded[y]
        for x in range(1, width + 1):
            here[x] = max(level[x], above[x])
    below = np.zeros_like(padded[0])
    for y in range(last - 1, 0, -1):
        here, level = filled[y], padded[y]
        for x in range(1, width + 1):
            below[x] = max(level[x], below[x])
            here[x] = min(here[x], below[x])
    scratch = np.empty((2, padded.shape[1]), np.uint16)
    for y in range(1, last):
        _flood_row(filled[y], filled[y - 1], padded[y], width, scratch, True)
    step = 1
    lowered = True
    while lowered:  # a sweep leaves nothing to do in its own direction
        lowered = False
        step = -step
        for y in range(1, last) if step > 0 else range(last - 1, 0, -1):
            lowered |= _flood_row(filled[y], filled[y - step], padded[y], width, scratch, False)
    return filled


@jit
def _flood_row(here, beside, level, width, scratch, always):  # type: ignore[no-untyped-def]
    """Let the flood enter a row from the one `beside` it and, if that lowered anything or `always`, run along it."""
    lowered = False
    for x in range(1, width + 1):
        low = max(level[x], min(here[x], beside[x]))
        lowered |= low != here[x]
        here[x] = low
    if lowered or always:
        left = right = np.uint16(0)
        for x in range(1, width + 1):  # two scans in one loop: neither waits for the other
            left = max(level[x], min(left, here[x]))
            scratch[0, x] = left
            opposite = width + 1 - x
            right = max(level[opposite], min(right, here[opposite]))
            scratch[1, opposite] = right
        for x in range(1, width + 1):
            here[x] = min(scratch[0, x], scratch[1, x])
    return lowered


@jit
def _neighbourhoods(padded, width):  # type: ignore[no-untyped-def]
    """For each pixel (flat) the mask of its neighbours that precede it, and the flat offset of each neighbour.

    Higher levels precede lower ones, raster order decides among equals.
    """
    rows, stride = padded.shape
    near = np.zeros(padded.shape, np.uint8)
    for y in range(1, rows - 1):
        above, here, below, out = padded[y - 1], padded[y], padded[y + 1], near[y]
        for x in range(1, width + 1):
            v = here[x]
            out[x] = (
                np.uint8(above[x - 1] >= v)
                | np.uint8(above[x] >= v) << 1
                | np.uint8(above[x + 1] >= v) << 2
                | np.uint8(here[x + 1] > v) << 3
                | np.uint8(below[x + 1] > v) << 4
                | np.uint8(below[x] > v) << 5
                | np.uint8(below[x - 1] > v) << 6
                | np.uint8(here[x - 1] >= v) << 7
            )
    ring = np.array([-stride - 1, -stride, -stride + 1, 1, stride + 1, stride, stride - 1, -1])
    return near.ravel(), ring


@jit
def _sort_pixels(padded, width, num_levels):  # type: ignore[no-untyped-def]
    """Flat indices of the pixels, highest level first and in raster order among equals, and where each level starts.

    Pixels of level v stand at `order[start[v] : start[v - 1]]`.
    """
    rows, stride = padded.shape
    start = np.zeros(num_levels + 2, np.int32)
    for y in range(1, rows - 1):
        row = padded[y]
        for x in range(1, width + 1):
            start[row[x]] += 1
    total = np.int32(0)
    for v in range(num_levels + 1, -1, -1):
        count = start[v]
        start[v] = total
        total += count
    order = np.empty(total, np.uint32)
    slot = start.copy()
    for y in range(1, rows - 1):
        row = padded[y]
        for x in range(1, width + 1):
            v = row[x]
            order[slot[v]] = y * stride + x
            slot[v] += 1
    return order, start


@jit
def _iou(x0, y0, x1, y1, truth_N4):  # type: ignore[no-untyped-def]
    """Best IoU of a box with any of `truth_N4`, maxima inclusive; an inverted true box is never hit."""
    best = 0.0
    area = (x1 - x0 + 1) * (y1 - y0 + 1)
    for n in range(len(truth_N4)):
        a0, b0, a1, b1 = truth_N4[n]
        if a1 < a0 or b1 < b0:
            continue
        width = max(0.0, min(x1, a1) - max(x0, a0) + 1)
        height = max(0.0, min(y1, b1) - max(y0, b0) + 1)
        common = width * height
        best = max(best, common / (area + (a1 - a0 + 1) * (b1 - b0 + 1) - common))
    return best


@jit
def ious_of_boxes(boxes_M4, truth_N4):  # type: ignore[no-untyped-def]
    """Best IoU of each box with any true one, float64 [M]; maxima are inclusive, whatever they are called."""
    ious = np.empty(len(boxes_M4))
    for m in range(len(boxes_M4)):
        ious[m] = _iou(boxes_M4[m, 0], boxes_M4[m, 1], boxes_M4[m, 2], boxes_M4[m, 3], truth_N4)
    return ious


@jit
def iou_matrix(boxes_M4, truth_N4):  # type: ignore[no-untyped-def]
    """IoU of each box with each true one, float64 [M, N]; maxima are inclusive, whatever they are called."""
    ious_MN = np.empty((len(boxes_M4), len(truth_N4)))
    for n in range(len(truth_N4)):
        ious_MN[:, n] = ious_of_boxes(boxes_M4, truth_N4[n : n + 1])
    return ious_MN


@jit
def _find(component, c):  # type: ignore[no-untyped-def]
    while component[c, PARENT] != c:
        component[c, PARENT] = component[component[c, PARENT], PARENT]
        c = component[c, PARENT]
    return c


@jit
def _bear(component, c, x, y, p):  # type: ignore[no-untyped-def]
    """Start component `c` at pixel `p`, which is (x, y)."""
    component[c, X0] = component[c, X1] = x
    component[c, Y0] = component[c, Y1] = y
    component[c, AREA] = 0
    component[c, FIRST] = p
    component[c, PARENT] = c
    component[c, CHANGED] = 1


@jit
def _grow(component, c, x0, y0, x1, y1):  # type: ignore[no-untyped-def]
    """Let the box of `c` cover another."""
    if x0 < component[c, X0]:
        component[c, X0] = x0
        component[c, CHANGED] = 1
    if y0 < component[c, Y0]:
        component[c, Y0] = y0
        component[c, CHANGED] = 1
    if x1 > component[c, X1]:
        component[c, X1] = x1
        component[c, CHANGED] = 1
    if y1 > component[c, Y1]:
        component[c, Y1] = y1
        component[c, CHANGED] = 1


@jit
def _merge(component, c, other):  # type: ignore[no-untyped-def]
    """Let `c` absorb `other`."""
    component[other, PARENT] = c
    component[c, AREA] += component[other, AREA]
    component[c, FIRST] = min(component[c, FIRST], component[other, FIRST])
    _grow(component, c, component[other, X0], component[other, Y0], component[other, X1], component[other, Y1])


@jit
def _add_pixels(pixels, near, shift, ring, arcs, weight, label, component, live, num_born, num_live):  # type: ignore[no-untyped-def]
    """Add the pixels of one level, in raster order; new components join `live`. Returns both numbers, grown."""
    for p in pixels:
        mask = near[p]
        y, x = p >> shift, p & ((1 << shift) - 1)
        if arcs[mask, 0] < 0:
            c = num_born
            _bear(component, c, x, y, p)
            live[num_live] = c
            num_born, num_live = num_born + 1, num_live + 1
        else:
            c = _find(component, label[p + ring[arcs[mask, 0]]])
            for k in range(1, 4):
                if arcs[mask, k] < 0:
                    break
                other = _find(component, label[p + ring[arcs[mask, k]]])
                if other != c:
                    _merge(component, c, other)
            _grow(component, c, x, y, x, y)
            component[c, FIRST] = min(component[c, FIRST], p)
        component[c, AREA] += weight[mask]
        label[p] = c
    return num_born, num_live


@jit
def _keep_roots(component, live, num_live):  # type: ignore[no-untyped-def]
    """Take merged components off the front of `live`. Returns how many remain."""
    kept = 0
    for i in range(num_live):
        live[kept] = live[i]
        kept += component[live[i], PARENT] == live[i]
    return kept


@jit
def _largest_of(component, live, num_live, last_of_equals):  # type: ignore[no-untyped-def]
    best = live[0]
    for i in range(1, num_live):
        c = live[i]
        area, most = component[c, AREA], component[best, AREA]
        later = component[c, FIRST] > component[best, FIRST]
        if area > most or (area == most and later == last_of_equals):
            best = c
    return best


@jit
def _largest(levels_HW, num_masks, polygon):  # type: ignore[no-untyped-def]
    height, width = levels_HW.shape
    padded, shift = _pad(levels_HW)
    if polygon:
        padded = _fill_holes(padded, width)
    near, ring = _neighbourhoods(padded, width)
    order, start = _sort_pixels(padded, width, num_masks)
    weight = POLYGON_AREA if polygon else PIXEL_COUNT
    label = np.empty(padded.size, np.uint32)
    most = ((height + 1) // 2) * ((width + 1) // 2)  # two births are never neighbours
    component, live = np.empty((most, 8), np.uint32), np.empty(most, np.uint32)
    num_born = num_live = 0
    boxes = np.empty((num_masks, 4), np.int32)
    boxes[:] = np.array([0, 0, 0, 0] if polygon else [0, 0, width, height], np.int32)
    for level in range(num_masks, 0, -1):
        pixels = order[start[level] : start[level - 1]]
        if len(pixels) == 0 and level < num_masks:
            boxes[level - 1] = boxes[level]  # the mask above
            continue
        num_born, num_live = _add_pixels(
            pixels, near, shift, ring, ARCS, weight, label, component, live, num_born, num_live
        )
        num_live = _keep_roots(component, live, num_live)
        if num_live:
            c = _largest_of(component, live, num_live, polygon)
            boxes[level - 1, 0] = component[c, X0] - 1
            boxes[level - 1, 1] = component[c, Y0] - 1
            boxes[level - 1, 2] = min(component[c, X1], width - 1) if polygon else component[c, X1]
            boxes[level - 1, 3] = min(component[c, Y1], height - 1) if polygon else component[c, Y1]
    return boxes


@jit
def _whole(levels_HW, num_masks):  # type: ignore[no-untyped-def]
    """The box round all pixels of each mask, inclusive maxima."""
    height, width = levels_HW.shape
    boxes = np.empty((num_masks + 1, 4), np.int32)
    boxes[:] = np.array([width, height, -1, -1], np.int32)
    for y in range(height):
        for x in range(width):
            _cover(boxes[levels_HW[y, x]], x, y, x, y)
    for t in range(num_masks - 1, 0, -1):
        _cover(boxes[t], boxes[t + 1, 0], boxes[t + 1, 1], boxes[t + 1, 2], boxes[t + 1, 3])
    for t in range(1, num_masks + 1):
        if boxes[t, 2] < 0:
            boxes[t] = np.array([0, 0, width - 1, height - 1], np.int32)
    return boxes[1:]


@jit
def _cover(box, x0, y0, x1, y1):  # type: ignore[no-untyped-def]
    """Let `box` cover another."""
    box[0], box[1] = min(box[0], x0), min(box[1], y0)
    box[2], box[3] = max(box[2], x1), max(box[3], y1)


@jit
def _all_boxes(levels_HW, num_masks, truth_N4, contours):  # type: ignore[no-untyped-def]
    """Best IoU of any box of each mask: of the `contours` as OpenCV finds them, or of 4-connected components."""
    height, width = levels_HW.shape
    padded, shift = _pad(levels_HW)
    near, ring = _neighbourhoods(padded, width)
    order, start = _sort_pixels(padded, width, num_masks)
    label = np.empty(padded.size, np.uint32)
    # two births are never neighbours
    most = ((height + 1) // 2) * ((width + 1) // 2) if contours else (height * width + 1) // 2
    component, live = np.empty((most, 8), np.uint32), np.empty(most, np.uint32)
    iou = np.empty(most)
    num_born = num_live = 0
    if contours:
        arcs, high, empty = ARCS, 0, _iou(0, 0, 0, 0, truth_N4)
    else:
        arcs, high, empty = SIDES, -1, _iou(0, 0, width - 1, height - 1, truth_N4)
    best = np.full(num_masks, empty)
    for level in range(num_masks, 0, -1):
        pixels = order[start[level] : start[level - 1]]
        if len(pixels) == 0 and level < num_masks:
            best[level - 1] = best[level]  # the mask above
            continue
        num_born, num_live = _add_pixels(
            pixels, near, shift, ring, arcs, PIXEL_COUNT, label, component, live, num_born, num_live
        )
        num_live = _keep_roots(component, live, num_live)
        if num_live:
            best[level - 1] = _best_of(component, live, num_live, iou, 0, high, width, height, truth_N4)
    if contours:
        _add_holes(padded, shift, width, height, order, start, label, truth_N4, best)
    return best


@jit
def _best_of(component, live, num_live, iou, low, high, width, height, truth_N4):  # type: ignore[no-untyped-def]
    """Best IoU of the live components' boxes; `iou` remembers those that did not change.

    A box is grown by `low` at its minima; its maxima are exclusive, and inclusive with a `high` of -1.
    """
    best = 0.0
    for i in range(num_live):
        c = live[i]
        if component[c, CHANGED]:
            component[c, CHANGED] = 0
            iou[c] = _iou(
                component[c, X0] - 1 - low,
                component[c, Y0] - 1 - low,
                min(component[c, X1] + high, width - 1),
                min(component[c, Y1] + high, height - 1),
                truth_N4,
            )
        best = max(best, iou[c])
    return best


@jit
def _add_holes(padded, shift, width, height, order, start, label, truth_N4, best):  # type: ignore[no-untyped-def]
    """Raise `best` to the IoUs of the holes' contours.

    A hole is a 4-connected component of the background that does not reach the frame; its contour runs through the
    pixels round it. Holes grow and merge as the threshold rises, and all pixels of one drain at one level: their own in
    the filled image.
    """
    stride = 1 << shift
    filled, level_of = _fill_holes(padded, width).ravel(), padded.ravel()
    num_pixels = np.sum(filled > level_of)
    if num_pixels == 0:
        return
    component, live = np.empty((num_pixels, 8), np.uint32), np.empty(num_pixels, np.uint32)
    iou = np.empty(num_pixels)
    drains = np.empty(num_pixels, np.uint16)
    label[:] = NONE
    num_born = num_live = 0
    of_mask = 0.0
    for t in range(len(best)):
        pixels = order[start[t] : start[t - 1] if t else len(order)]
        if len(pixels) == 0:
            best[t] = max(best[t], of_mask)  # the mask below
            continue
        for p in pixels:
            if filled[p] == t:
                continue
            y, x = p >> shift, p & (stride - 1)
            c = num_born
            _bear(component, c, x, y, p)
            drains[c] = filled[p]
            live[num_live] = c
            num_born, num_live = num_born + 1, num_live + 1
            for n in (p - stride, p + 1, p + stride, p - 1):
                if label[n] != NONE:
                    other = _find(component, label[n])
                    if other != c:
                        _merge(component, other, c)
                        c = other
            label[p] = c
        num_live = _keep_roots(component, live, num_live)
        num_live = _keep_undrained(drains, t, live, num_live)
        of_mask = _best_of(component, live, num_live, iou, 1, 1, width, height, truth_N4)
        best[t] = max(best[t], of_mask)


@jit
def _keep_undrained(drains, t, live, num_live):  # type: ignore[no-untyped-def]
    kept = 0
    for i in range(num_live):
        live[kept] = live[i]
        kept += drains[live[i]] > t
    return kept
