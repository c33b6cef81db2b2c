# SPDX-License-Identifier: Apache-2.0
"""The two passes of resampling over a band of rows, as compiled loops.

::

    rows_first                              columns_first

    rows of the source, R G B x R G B x     rows of the source, R G B x R G B x
      | turn: columns of some rows            | widen: a piece of the rows
      | weigh: resize along rows              | weigh: resize along columns
      v turn_back: separate the channels      v
    between: planes R, G, B of some rows    between: R G B x R G B x of `_HIGH` rows
      | widen: a piece of the rows            | turn: columns of some rows
      | weigh: resize along columns           | weigh: resize along rows
      v                                       v turn_back: separate the channels
    tiles                                   tiles

Pixels are read as uint32, so that one move takes a pixel's four bytes. Between the
passes they are bytes again, as in Pillow. What a loop works on stays in the processor's
caches: a group of rows, a piece of each row.

numba compiles each function once for each type of floats, which is that of the weights.
Weights are ``(first, count, weights)``: for each place of the result the first of the
pixels that it depends on, their number (both int64), and their weights.
"""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numba import njit

from . import vectors
from .vectors import turn, turn_back, weigh, widen

_VECTORS_DIGEST = sha256(Path(vectors.__file__).read_bytes()).hexdigest()[:16]

# Bytes of a vector of floats.
_VECTOR = 256

# Pixels of a row that are turned together; as floats they fit a first-level cache.
_WINDOW = 112

# Most rows of the result that are computed together.
_HIGH = 32

# Bytes of a line of the caches. A vector that is on two lines takes two loads.
_LINE = 64

# Groups of rows, each as high as a vector has pixels, between the two passes.
_GROUPS = 2


class _Workspace(NamedTuple):
    """Memory for the pass along rows, and how much it holds.

    Attributes:
        piece: Places of a row that are computed together.
        lines: Floats, room for the pixels that they depend on.
        turned: uint32, room for their values.
    """

    piece: int
    lines: np.ndarray
    turned: np.ndarray


class _Rows(NamedTuple):
    """A group of rows, as high as a vector has pixels.

    Attributes:
        pixels: uint32, rows of ``width`` pixels one after the other.
        width: Pixels of a row.
        top: The first row.
        last: The last row, counted from ``top``. It is repeated for those after it.
    """

    pixels: np.ndarray
    width: int
    top: int
    last: int


def compiled(function: Callable) -> Callable:
    """Compile at the first call; the compiled code releases Python's lock.

    numba keeps it for other processes: beside this file, or in the folder that it finds
    for the user. It compiles anew after a change of this file. The functions of
    ``vectors.py`` are parts of the compiled code, so their digest is a part of each
    name here, by which numba calls its files.
    """
    function.__qualname__ = f"{function.__name__}_{_VECTORS_DIGEST}"
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no such folder can be written to
        return njit(**options)(function)


@compiled
def _size_of_piece(first, count):
    """Places that are computed together, and the most pixels that they depend on."""
    places = len(first)
    reach = first[-1] + count[-1] - first[0]
    piece = 16
    while piece < 128 and (piece + 16) * reach <= _WINDOW * places:
        piece += 16
    most = 0
    for start in range(0, places, piece):
        last = min(start + piece, places) - 1
        most = max(most, first[last] + count[last] - first[start])
    return piece, most + 32


@compiled
def _along_rows(rows, along, workspace, out, at, step):
    """Resize a group of rows.

    Args:
        rows: `_Rows`.
        along: The weights.
        workspace: `_Workspace`.
        out: uint8, from ``at`` on three planes of ``step`` values for each row.
        at: Position in ``out``.
        step: Values from one plane to the next.
    """
    source, width, top, last = rows
    piece, lines, turned = workspace
    first, count, weights = along
    taps, factors = weights.shape[1], weights.reshape(-1)
    lanes = _VECTOR // lines.itemsize
    side = lanes // 4
    levels = turned.view(np.uint8)
    for start in range(0, len(first), piece):
        stop = min(start + piece, len(first))
        left = min(first[start], width - 8)
        right = first[stop - 1] + count[stop - 1]
        for x in range(left, right, 8):
            begin = min(x, width - 8)
            place = (begin - left) * lanes
            turn(source, top * width + begin, width, last, lines, place)
        for x in range(start, stop):
            line, place = (first[x] - left) * lanes, (x - start) * lanes
            weigh(lines, line, lanes, factors, x * taps, count[x], levels, place)
        for x in range(start, stop, 16):
            turn_back(turned, (x - start) * side, out, at + x, step, lines)


@compiled
def rows_first(pixels, along_rows, along_columns, top, bottom, out):
    """Resize along rows, then along columns: rows ``top`` to ``bottom`` of the result.

    Args:
        pixels: uint32 of shape ``(height, width)``, contiguous: the rows that the
            result depends on. The width is at least a vector's pixels.
        along_rows: The weights of the first pass.
        along_columns: Those of the second pass.
        out: uint8 of shape ``(rows, columns, 3, y, x)``, contiguous, of all bands.
    """
    height, width = pixels.shape
    first, count, weights = along_columns
    skipped = first[top]
    new_width, taps, factors = len(along_rows[0]), weights.shape[1], weights.reshape(-1)
    lanes = _VECTOR // weights.itemsize
    side = lanes // 4
    piece, window = _size_of_piece(along_rows[0], along_rows[1])
    turned = _on_lines(np.zeros(piece * side + _LINE, np.uint32))
    step = _round_up_to_64(new_width)
    room = count.max() + _GROUPS * side
    between = _on_lines(np.zeros(room * 3 * step + _LINE, np.uint8))
    lines = _on_lines(np.zeros(max(window, room) * lanes + _LINE, weights.dtype))
    workspace = _Workspace(piece, lines, turned)
    edge = np.zeros(lanes, np.uint8)
    tiles, shape = out.reshape(-1), out.shape
    source = pixels.reshape(-1)
    begin = held = 0  # Rows begin..begin+held of the source are in `between`.
    for group in range(0, height, _GROUPS * side):
        stop = min(group + _GROUPS * side, height)
        dropped = min(first[top] - skipped - begin, held)
        if dropped:
            values = 3 * step
            for row in range(dropped, held):
                to = between[(row - dropped) * values :]
                _copy(between[row * values :], to, values)
        begin += dropped
        for row in range(group, stop, side):
            last = min(side, height - row) - 1
            at = (row - begin) * 3 * step
            rows = _Rows(source, width, row, last)
            _along_rows(rows, along_rows, workspace, between, at, step)
        held = stop - begin
        while True:
            ready, most = top, min(bottom, top + _HIGH)
            while ready < most and first[ready] + count[ready] - skipped <= stop:
                ready += 1
            if ready == top:
                break
            lowest = first[top] - skipped - begin
            highest = first[ready - 1] + count[ready - 1] - skipped - begin
            for plane in range(3):
                for x in range(0, new_width, lanes):
                    for row in range(lowest, highest):
                        place = (3 * row + plane) * step + x
                        widen(between, place, lines, (row - lowest) * lanes)
                    inside = _place_in_tiles(shape, plane, top, x)[1] >= lanes
                    for y in range(top, ready):
                        line = (first[y] - skipped - begin - lowest) * lanes
                        place, number = y * taps, count[y]
                        if inside:
                            to = _place_in_tiles(shape, plane, y, x)[0]
                            weigh(lines, line, lanes, factors, place, number, tiles, to)
                        else:
                            weigh(lines, line, lanes, factors, place, number, edge, 0)
                            _write_to_tiles(
                                edge,
                                0,
                                min(lanes, new_width - x),
                                tiles,
                                shape,
                                plane,
                                y,
                                x,
                            )
            top = ready


@compiled
def _on_lines(array):
    """An array from its first element at the start of a cache line."""
    return array[-array.ctypes.data % _LINE // array.itemsize :]


@compiled
def _copy(values, to, number):
    """Copy values to an array elsewhere; numba makes vectors of them."""
    for index in range(number):
        to[index] = values[index]


@compiled
def _round_up_to_64(width):
    return (width + 63) // 64 * 64


@compiled
def _place_in_tiles(shape, plane, row, x):
    """Where a value of the result is in the tiles, as a position and what is left of
    the tile's row."""
    _, columns, _, part_height, part_width = shape
    part, y = divmod(row, part_height)
    column, left = divmod(x, part_width)
    place = ((part * columns + column) * 3 + plane) * part_height + y
    return place * part_width + left, part_width - left


@compiled
def _write_to_tiles(levels, place, length, tiles, shape, plane, row, x):
    """Write a part of a row of the result to its tiles."""
    done = 0
    while done < length:
        to, room = _place_in_tiles(shape, plane, row, x + done)
        step = min(length - done, room)
        tiles[to : to + step] = levels[place + done : place + done + step]
        done += step


@compiled
def columns_first(pixels, along_rows, along_columns, top, bottom, out):
    """Like `rows_first`, the passes in the other order."""
    width = pixels.shape[1]
    first, count, weights = along_columns
    skipped = first[top]
    new_width, taps, factors = len(along_rows[0]), weights.shape[1], weights.reshape(-1)
    lanes = _VECTOR // weights.itemsize
    side = lanes // 4
    piece, window = _size_of_piece(along_rows[0], along_rows[1])
    turned = _on_lines(np.zeros(piece * side + _LINE, np.uint32))
    step = _round_up_to_64(new_width)
    most = 0
    for y in range(top, bottom):
        end = min(y + _HIGH, bottom) - 1
        most = max(most, first[end] + count[end] - first[y])
    lines = _on_lines(np.zeros(max(window, most) * lanes + _LINE, weights.dtype))
    workspace = _Workspace(piece, lines, turned)
    between = np.zeros(_HIGH * width, np.uint32)
    resized = np.zeros(side * 3 * step, np.uint8)
    source, levels = pixels.reshape(-1).view(np.uint8), between.view(np.uint8)
    tiles, shape = out.reshape(-1), out.shape
    for group in range(top, bottom, _HIGH):
        stop = min(group + _HIGH, bottom)
        lowest = first[group] - skipped
        highest = first[stop - 1] + count[stop - 1] - skipped
        for start in range(0, width, side):
            x = min(start, width - side)
            for row in range(lowest, highest):
                widen(source, 4 * (row * width + x), lines, (row - lowest) * lanes)
            for y in range(group, stop):
                line = (first[y] - skipped - lowest) * lanes
                place = 4 * ((y - group) * width + x)
                weigh(lines, line, lanes, factors, y * taps, count[y], levels, place)
        for row in range(group, stop, side):
            last = min(side, stop - row) - 1
            rows = _Rows(between, width, row - group, last)
            _along_rows(rows, along_rows, workspace, resized, 0, step)
            for y in range(last + 1):
                for plane in range(3):
                    place = (3 * y + plane) * step
                    _write_to_tiles(
                        resized, place, new_width, tiles, shape, plane, row + y, 0
                    )


@compiled
def planes_to_pixels(planes):
    """Three planes of a band, ``(3, height, width)``, as ``(height, width, 3)``."""
    _, height, width = planes.shape
    pixels = np.empty((height, width, 3), np.uint8)
    for y in range(height):
        red, green, blue = planes[0, y], planes[1, y], planes[2, y]
        row = pixels[y]
        for x in range(width):
            row[x, 0] = red[x]
            row[x, 1] = green[x]
            row[x, 2] = blue[x]
    return pixels
