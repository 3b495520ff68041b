"""Leaves out frames that nobody asked for and that no other frame is built from.

An encoder marks such frames, mostly B frames, in the header of each NAL unit: `nal_ref_idc` is 0 (H.264, Rec. ITU-T
H.264, 7.4.1), or the type is that of a sub-layer non-reference picture (HEVC, Rec. ITU-T H.265, 7.4.2.2). FFmpeg leaves
them out with `skip_frame = NONREF`. All others come out with the same pixels.

If frames are missing, the next one that comes out must still get its number. We number packets before they are decoded,
by their times: at a constant rate, time x rate rounds to the number. This proves itself. If each of 0, 1, ..., k came
once, then these are the ranks of the first k + 1 times, whatever the rate. Packets that were not left out must come out
as one frame each, in order. If anything else happens, `Unsure` is raised, and the caller decodes every frame, which
also shows what is damaged.
"""

from collections.abc import Collection, Iterator

import av
import numpy as np

from dataloaders.video_file import VideoFacts

CODECS = ("h264", "hevc")  # VP9 and AV1 build nearly everything from every frame: it saves nothing there
MOST_AHEAD = 16  # pictures that either codec may decode before one that is shown earlier


class Unsure(Exception):
    """The frames of this file cannot be told apart for certain unless each is decoded."""


class Skipping:
    """Tells a decoder which packets to leave out, and numbers the frames that come out.

    `wanted` are the numbers of the frames to decode. Only a constant rate of `rate` frames a second is followed.
    """

    def __init__(self, stream: av.VideoStream, rate: float, wanted: Collection[int]) -> None:
        self._context = stream.codec_context
        self._wanted = wanted
        self._last = max(wanted)
        self._frames_a_tick = float(stream.time_base or 0) * rate
        self._first: int | None = None  # time of frame 0, in ticks
        self._sent = 0
        self._reach = 0  # every number below it was sent
        self._ahead: set[int] = set()  # numbers beyond it that were sent
        self._depth = 0  # the most frames sent before one that is shown earlier
        self._delay: int | None = None  # packets that the decoder takes before the first frame comes out
        self._skipped: set[int] = set()
        self._next = 0  # number of the earliest frame that may still come out
        self._kind: tuple[int, int, str] | None = None
        self._is_skipping = False
        self._is_hevc = self._context.name == "hevc"
        header = self._context.extradata or b""
        # With an avcC or hvcC header each NAL unit comes after its length, otherwise after a start code.
        self._length_bytes = (header[21 if self._is_hevc else 4] & 3) + 1 if header[:1] == b"\1" else 0
        self._has_ended = False

    def send(self, packet: av.Packet) -> None:
        """Look at a packet before it is decoded, and set the decoder to leave its frame out or not."""
        if not packet.size:  # no more packets: the decoder gives what it has
            self._switch(False)
            return
        if packet.is_discard or packet.is_corrupt or packet.pts is None or self._has_ended:
            raise Unsure
        if self._first is None:
            self._first = packet.pts
        number = self._count(packet.pts)
        can_be_skipped = self._delay is not None and number < self._last and number not in self._wanted
        skip = (self._is_hevc or can_be_skipped) and self._is_for_itself(bytes(packet)) and can_be_skipped
        self._note(number)
        if skip:
            self._skipped.add(number)
        self._switch(skip)

    def number(self, picture: av.VideoFrame | None) -> int:
        """Return the number of a frame that came out."""
        if picture is None or picture.is_corrupt or picture.interlaced_frame or picture.pts is None:
            raise Unsure
        kind = picture.width, picture.height, picture.format.name
        if self._delay is None:
            self._delay = self._sent - 1
            self._kind = kind
            self._check_order()
        number = self._count(picture.pts)
        if kind != self._kind or not self._next <= number < self._reach:
            raise Unsure
        for missing in range(self._next, number):
            if missing not in self._skipped:
                raise Unsure
            self._skipped.remove(missing)
        self._next = number + 1
        return number

    def _count(self, time: int) -> int:
        return round((time - (self._first or 0)) * self._frames_a_tick)

    def _switch(self, skip: bool) -> None:
        if skip != self._is_skipping:
            self._context.skip_frame = "NONREF" if skip else "DEFAULT"
            self._is_skipping = skip

    def _note(self, number: int) -> None:
        """Note a packet's number; Unsure if it came before, or if its place in the order is odd."""
        if number < self._reach or number in self._ahead or len(self._ahead) >= MOST_AHEAD:
            raise Unsure
        self._sent += 1
        self._depth = max(self._depth, sum(other > number for other in self._ahead))
        self._ahead.add(number)
        while self._reach in self._ahead:
            self._ahead.remove(self._reach)
            self._reach += 1
        self._check_order()

    def _check_order(self) -> None:
        """Raise Unsure if frames are reordered over more places than the decoder waits for: it drops some of them."""
        if self._delay is not None and self._depth > self._delay:
            raise Unsure

    def _is_for_itself(self, data: bytes) -> bool:
        """Return whether no other frame is built from a packet's frame."""
        needed = []
        for unit, _ in self._nal_units(data):
            if self._holds_a_picture(data, unit):
                kind = data[unit] >> 1
                needed.append(kind >= 16 or kind & 1 if self._is_hevc else data[unit] & 0x60)
                if needed[-1] and not self._is_hevc:  # in HEVC, what follows a picture may end its sequence
                    return False
        if not needed or any(needed):
            return False
        self._check_bytes(data)
        return True

    def _nal_units(self, data: bytes) -> Iterator[tuple[int, int]]:
        """Yield where each NAL unit begins, and where it ends."""
        if self._length_bytes:
            start = 0
            while start + self._length_bytes < len(data):
                length = int.from_bytes(data[start : start + self._length_bytes], "big")
                start += self._length_bytes
                yield start, start + length
                start += length
            if start != len(data):
                raise Unsure
        else:
            start = data.find(b"\0\0\1")
            while 0 <= start < len(data) - 5:
                end = data.find(b"\0\0\1", start + 3)
                yield start + 3, end if end >= 0 else len(data)
                start = end

    def _check_bytes(self, data: bytes) -> None:
        """Raise Unsure for a packet with bytes that none may hold, such as the zeros of a sector that a disk lost."""
        if self._length_bytes:
            for unit in self._nal_units(data):
                if data.find(b"\0\0\0", *unit) >= 0 or data.find(b"\0\0\1", *unit) >= 0:
                    raise Unsure
        elif b"\0\0\0\0" in data or b"\0\0\2" in data:
            raise Unsure

    def _holds_a_picture(self, data: bytes, unit: int) -> bool:
        """Return whether a NAL unit holds a part of a picture.

        Unsure for what makes HEVC frames disappear: layers, of which a higher one may be built from a frame that
        nothing in its own layer needs; and pictures that discard others or begin a new sequence.
        """
        if not self._is_hevc:
            return 1 <= data[unit] & 31 <= 5
        if unit + 2 >= len(data):
            raise Unsure
        kind = data[unit] >> 1
        self._has_ended |= kind in (36, 37)  # end of a sequence, of the stream
        if kind >= 32:
            return False
        is_in_a_higher_layer = data[unit] & 1 or data[unit + 1] != 1
        breaks_off = 16 <= kind <= 18  # BLA: the frames before it in order of time are dropped
        discards = 16 <= kind <= 23 and data[unit + 2] & 0x40 and self._sent  # no_output_of_prior_pics_flag
        if is_in_a_higher_layer or breaks_off or discards:
            raise Unsure
        return True


def may_skip(stream: av.VideoStream, facts: VideoFacts, wanted: Collection[int]) -> bool:
    """Return whether some frame before the last of those wanted may be left out, as far as the file's header or its
    list of packets shows."""
    if stream.codec_context.name not in CODECS or len(wanted) > max(wanted) or facts.rate == 0:
        return False
    if facts.guess is not None or stream.container.format.name == "avi":  # an AVI states no times of B frames
        return False
    if facts.is_steady:
        return True
    times = facts.times
    if times is None:  # the index is in decoding order, in which a constant rate shows as well
        ticks = np.fromiter((entry.timestamp for entry in stream.index_entries), np.int64)
        times = ticks * float(stream.time_base or 0)
    if len(times) != facts.n_frames:
        return False
    return np.array_equal(np.round((times - times[0]) * facts.rate), np.arange(len(times)))
