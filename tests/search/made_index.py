"""An index of made windows of a real model, without videos."""

from pathlib import Path

import numpy as np

from benchmarks.made_vectors import make_world
from search.model import Encoder
from search.store import Content, Store

FILES, WINDOWS = 50, 40  # of a file


def make_index(folder: Path, encoder: Encoder) -> Path:
    """Write FILES files of WINDOWS windows, each a second long; return the folder."""
    world = make_world(FILES * WINDOWS, encoder.facts["dimension"], 1)
    with Store(folder, write=True) as store:
        model = store.add_model(encoder.key, "vpt", encoder.facts)
        store.add_root("/videos", False)
        times = np.arange(WINDOWS, dtype=float)
        for file in range(FILES):
            content = Content(f"/videos/{file:02}.mp4", 1, 1, f"key {file}", float(WINDOWS))
            rows = world.vectors[file * WINDOWS : (file + 1) * WINDOWS]
            store.put(content, model, times.tolist(), (times + 1).tolist(), rows)
    return folder
