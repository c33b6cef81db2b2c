# SPDX-License-Identifier: Apache-2.0
"""Pillow's memory of an image as an array, without a copy where possible."""

import ctypes

import numpy as np
from PIL import Image

# Bytes of the rows that are copied at once out of an image; they fit into a CPU cache.
_COPIED = 1 << 19


def rgbx_pixels(image: Image.Image) -> np.ndarray:
    """Pixels of an RGB image. Never write to them.

    Returns:
        uint8 of shape ``(height, width, 4)``. It is Pillow's own memory if that is
        contiguous. The fourth channel is padding.
    """
    own = own_memory(image)
    if own is not None:
        return own
    pixels = np.empty((image.height, image.width, 4), np.uint8)
    height = max(1, _COPIED // (4 * image.width))
    for top in range(0, image.height, height):
        bottom = min(top + height, image.height)
        band = image.crop((0, top, image.width, bottom))
        pixels[top:bottom] = rgbx_pixels(band)
    return pixels


def rows_of(image: Image.Image, top: int, bottom: int) -> np.ndarray:
    """`rgbx_pixels` of some rows, of which only these are copied, if at all."""
    own = own_memory(image)
    if own is not None:
        return own[top:bottom]
    return rgbx_pixels(image.crop((0, top, image.width, bottom)))


def is_contiguous(image: Image.Image) -> bool:
    """Whether Pillow's memory of an RGB image is one block."""
    return own_memory(image) is not None


def own_memory(image: Image.Image) -> np.ndarray | None:
    """Pillow's memory of an RGB or RGBA image; `None` if it is in several blocks.

    Returns:
        uint8 of shape ``(height, width, 4)``. The fourth channel of RGB is padding.
    """
    try:
        return np.asarray(_Memory(image))
    except ValueError:  # from Pillow
        return None


class _ArrowArray(ctypes.Structure):
    """The first fields of ``ArrowArray`` in the Arrow C data interface."""


_ArrowArray._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
]

_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


class _Memory:
    """Pillow's memory of an image as an array; keeps the memory alive.

    Pillow exports it through the Arrow C data interface, as lists of four
    bytes.

    Raises:
        ValueError: From Pillow, if the memory is not contiguous.
    """

    def __init__(self, image: Image.Image) -> None:
        _, self._capsule = image.__arrow_c_array__()
        pointer = _capsule_pointer(self._capsule, b"arrow_array")
        lists = _ArrowArray.from_address(pointer)
        self.__array_interface__ = {
            "shape": (image.height, image.width, 4),
            "typestr": "|u1",
            "data": (lists.children[0].contents.buffers[1], False),
            "version": 3,
        }
