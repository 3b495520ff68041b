"""The number of bytes that a video file says it has. A file with fewer was cut off while it was downloaded.

FFmpeg reads what there is and does not report it. Matroska and WebM state the size of their one large element (RFC
8794), an AVI the sizes of its RIFF chunks, ASF and FLV the size of the whole file; an mp4's index says where its last
frame ends. Transport streams, program streams and Ogg state nothing.
"""

import struct
from typing import BinaryIO

import av

from dataloaders.file_part import VideoPath

HEAD = 65_536  # first bytes of a file, which hold its header's own fields
MATROSKA, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
ASF, FILE_PROPERTIES = (
    bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
    bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"),
)


def stated_size(path: VideoPath, stream: av.VideoStream) -> int:
    """Return the bytes that a file should have, 0 if it does not say; `stream` is its opened picture stream."""
    with path.open("rb") as file:
        head = file.read(HEAD)
        if head[:4] == b"RIFF":
            return _riff(file, path.stat().st_size)
    if head[:4] == MATROSKA:
        return _matroska(head)
    if head[:16] == ASF:
        return _number_after(head, FILE_PROPERTIES, 24, "<Q")  # a size and a file id lie in between
    if head[:3] == b"FLV":
        return _number_after(head, b"\x00\x08filesize\x00", 0, ">d")
    index = stream.index_entries
    if "mp4" in stream.container.format.name and len(index):
        return index[-1].pos + index[-1].size
    return 0


def is_cut(path: VideoPath, stream: av.VideoStream) -> bool:
    """Return whether the file is shorter than it says."""
    return path.stat().st_size < stated_size(path, stream)


def _riff(file: BinaryIO, size: int) -> int:
    """Return the end of the last RIFF chunk; an AVI of more than a gigabyte has several. While a file is being written
    the last size is 0, and in a stream without a known end it is the largest number."""
    end = 0
    while end < size:
        file.seek(end)
        header = file.read(8)
        if header[:4] != b"RIFF" or len(header) < 8:
            break
        if (length := struct.unpack("<I", header[4:])[0]) in (0, 0xFFFFFFFF):
            break
        end += 8 + length
    return end


def _matroska(head: bytes) -> int:
    place = 4
    width, length = _ebml_size(head, place)
    place += width + length
    while head[place : place + 1] == b"\xec":  # an empty element, put in as padding
        width, length = _ebml_size(head, place + 1)
        place += 1 + width + length
    if head[place : place + 4] != SEGMENT:
        return 0
    width, length = _ebml_size(head, place + 4)
    unknown = length == (1 << 7 * width) - 1  # a stream without a known end
    return 0 if unknown else place + 4 + width + length


def _ebml_size(head: bytes, place: int) -> tuple[int, int]:
    """Return the width in bytes of an element's size, and the size; an impossible size counts as unknown."""
    first = head[place] if place < len(head) else 0
    width = 9 - first.bit_length()
    if width > 8 or place + width > len(head):
        return 1, 127
    return width, int.from_bytes(head[place : place + width], "big") & ((1 << 7 * width) - 1)


def _number_after(head: bytes, name: bytes, gap: int, form: str) -> int:
    place = head.find(name)
    if place < 0:
        return 0
    field = head[place + len(name) + gap :][: struct.calcsize(form)]
    number = struct.unpack(form, field)[0] if len(field) == struct.calcsize(form) else 0
    return int(number) if 0 <= number < 1 << 62 else 0
