"""The classes of a data set for action recognition: keys, names, and which classes mirroring or reversal exchange."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dataloaders.samples import Sample


@dataclass(frozen=True)
class Classes:
    """The K classes of a data set, in the order of their ids 0 to K - 1.

    `keys` are the classes as folders and lists write them ("kick_ball"); `Sample.label` is one of them. `names` are
    what a text calls them ("kick ball"). `mirrored` maps a key to the class that its videos show after a horizontal
    flip, `reversed` to the class that they show when played backwards; a class in neither stays itself, as far as is
    known. Both are their own inverse.
    """

    keys: tuple[str, ...]
    names: tuple[str, ...]
    mirrored: Mapping[str, str] = field(default_factory=dict)
    reversed: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    def ids(self, samples: Sequence[Sample]) -> np.ndarray:
        """Return the class ids of samples, int64 `[N]`; KeyError for a label that is no key."""
        id_of = {key: number for number, key in enumerate(self.keys)}
        return np.array([id_of[sample.label] for sample in samples], dtype=np.int64)
