"""The orientation and the shape in which players show a picture.

A phone held upright records turned frames, and a front camera mirrored ones; the file says how to undo this. The
display matrix is that of ISO/IEC 14496-12 (8.3.2.3): (a, b, u, c, d, v, x, y, w) shows the pixel of column p and row q
in column a p + c q + x and row b p + d q + y. FFmpeg passes it on as nine 32-bit integers in the machine's byte order.
Pixels need not be square: DVDs, camcorders and old phones store pictures that players stretch.

Shapes: H x W pixels.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from av.buffer import Buffer

MAX_PIXEL_ASPECT = 4  # of a pixel's long side to its short one; anamorphic film and video stay below 2.4
UPRIGHT = (1, 0, 0, 0, 1, 0, 0, 0, 1)


def display_matrix(frame: av.VideoFrame) -> Sequence[int]:
    """Return the nine numbers of a decoded frame's display matrix, UPRIGHT if it has none."""
    data = frame.side_data.get("DISPLAYMATRIX")
    return np.frombuffer(bytes(data), np.int32).tolist() if isinstance(data, Buffer) else UPRIGHT


def shown_width(width: int, height: int, pixel_aspect: Fraction | None) -> int:
    """Return the width in square pixels of a picture of width x height pixels before it is turned; its height stays.

    `pixel_aspect` is the width of a pixel over its height. These count as square: None and zero, which mean unknown;
    anything beyond MAX_PIXEL_ASPECT either way, which no camera or disc has; and a change of a side by less than two
    pixels, which is how FFmpeg's scaling notes that it rounded a side.
    """
    if not pixel_aspect or not 1 / MAX_PIXEL_ASPECT <= pixel_aspect <= MAX_PIXEL_ASPECT:
        return width
    if abs(pixel_aspect - 1) * max(width, height) < 2:
        return width
    return max(1, round(width * pixel_aspect))


def turned(pixels: np.ndarray, matrix: Sequence[int]) -> np.ndarray:
    """Turn pixels [H, W, 3] by quarters and mirror them as the matrix asks; a view [H, W, 3] or [W, H, 3].

    FFmpeg shows the same eight orientations. An angle in between becomes the nearest. A matrix that flattens the
    picture, such as zeros, asks for nothing that can be shown; like FFmpeg we leave the picture as it is.
    """
    a, b, _, c, d = matrix[:5]
    if a * d == b * c:
        return pixels
    across, down = math.hypot(a, c), math.hypot(b, d)
    if abs(b) / down > abs(a) / across:  # columns become rows
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
