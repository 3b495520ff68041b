"""What `benchmarks.peers` compares: work that this project and well-known libraries both do, on the same input."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from modules.clip import CLIPArchitecture

Work = Callable[[], object]


@dataclass(frozen=True)
class Sizes:
    """How much work there is."""

    architecture: CLIPArchitecture
    clips: int  # of decoding and caches
    frames: int  # T
    seconds: int  # length of a made clip
    batch: int  # B, of a training step
    captions: tuple[int, ...]  # N, for each contest of metrics
    videos: tuple[int, ...]  # V


@dataclass(frozen=True)
class Peer:
    """A library's way to do the work; `prepare` imports it and returns the work."""

    module: str  # what must be installed
    prepare: Callable[[], Work]


@dataclass(frozen=True)
class Contest:
    """One kind of work, done by this project and by peers, by name."""

    part: str
    work: str
    ours: Work
    peers: Mapping[str, Peer] = field(default_factory=dict)
