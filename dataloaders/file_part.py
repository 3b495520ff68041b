"""A video that is a part of a larger file, such as a member of a tar.

`FilePart` has what the decoder asks of a path, and FFmpeg reads the part in place by its protocol `subfile`. So nothing
is unpacked, and the frames are those of a file with the same bytes.
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True)
class FilePart:
    """The `size` bytes of a file that begin at `offset`. `name` is the part's own name, for messages."""

    file: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.file}/{self.name}"

    def address(self) -> str:
        """Return the part's address for FFmpeg, see https://ffmpeg.org/ffmpeg-protocols.html#subfile."""
        return f"subfile,,start,{self.offset},end,{self.offset + self.size},,:{self.file.absolute()}"

    def read(self) -> bytes:
        """Return the part's bytes; raises OSError if the file cannot be read."""
        with self.file.open("rb") as file:
            return os.pread(file.fileno(), self.size, self.offset)

    def open(self, mode: str = "rb") -> BinaryIO:
        """Open the part for reading, like a file of its own."""
        assert mode == "rb", mode
        return io.BytesIO(self.read())

    def stat(self) -> os.stat_result:
        """Return what the system says about the file, with the size of the part."""
        status = self.file.stat()
        return os.stat_result((*status[:6], self.size, *status[7:10]))


VideoPath = Path | FilePart
