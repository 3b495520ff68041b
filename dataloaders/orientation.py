"""How a file asks players to show its picture: turned and mirrored, in one of eight orientations, and in which shape.

A phone held upright records turned frames, one with a front camera mirrored ones, and notes in the file what undoes it.
The matrix is that of ISO/IEC 14496-12 (8.3.2.3): (a, b, u, c, d, v, x, y, w), which shows the pixel of column p and row
q in column a p + c q + x and row b p + d q + y. FFmpeg hands it on as nine 32-bit integers in the machine's byte order.

Pixels need not be square: DVDs, camcorders and old phones store pictures that are to be stretched.

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
    """The nine numbers of a decoded frame's display matrix, UPRIGHT where it has none."""
    data = frame.side_data.get("DISPLAYMATRIX")
    return np.frombuffer(bytes(data), np.int32).tolist() if isinstance(data, Buffer) else UPRIGHT


def shown_width(width: int, height: int, pixel_aspect: Fraction | None) -> int:
    """The width in square pixels of a picture of width x height pixels, before it is turned; its height stays.

    `pixel_aspect` is the width of a pixel over its height. None and zero, which stand for unknown, and what is beyond
    MAX_PIXEL_ASPECT either way, which no camera or disc has, count as square. So does what changes a side by less than
    two pixels, which is how FFmpeg's scaling notes that it has rounded a side.
    """
    if not pixel_aspect or not 1 / MAX_PIXEL_ASPECT <= pixel_aspect <= MAX_PIXEL_ASPECT:
        return width
    if abs(pixel_aspect - 1) * max(width, height) < 2:
        return width
    return max(1, round(width * pixel_aspect))


def turned(pixels: np.ndarray, matrix: Sequence[int]) -> np.ndarray:
    """Pixels [H, W, 3] as they are to be shown, a view [H, W, 3] or [W, H, 3]: turned by quarters and mirrored.

    These are the eight orientations that FFmpeg shows. Of an angle in between it is the nearest. A matrix that flattens
    the picture, as one of zeros, asks for nothing that can be shown, and like FFmpeg the picture is left as it is.
    """
    a, b, _, c, d = matrix[:5]
    if a * d == b * c:
        return pixels
    across, down = math.hypot(a, c), math.hypot(b, d)
    if abs(b) / down > abs(a) / across:  # columns become rows
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
