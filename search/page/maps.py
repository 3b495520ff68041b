"""Where STOP puts its prompts in a window, for the page to draw: `prompt_maps` as numbers.

Shapes: T real frames, P patches, G grid.
"""

import threading
from collections import OrderedDict
from typing import Any

import torch

from engine.data import normalise_for
from engine.evaluate import evaluating
from modules.methods import Method
from modules.methods.stop import STOP
from modules.methods.stop_released import STOPReleased
from search.model import Encoder
from search.page.children import Children
from search.page.decoding import Frames, read_window
from search.page.live import LiveIndex
from search.page.media import Moment, Refused
from search.reading import cut

KEPT = 500  # windows whose maps are kept in memory


def has_maps(method: Method) -> bool:
    """Return whether a method has regions or prompts that can be drawn over a picture."""
    if isinstance(method, STOPReleased):  # "comb" spreads a region over the whole picture
        return method.pixel.region_mask == "patches"
    return isinstance(method, STOP) and bool(len(method.intra) or len(method.inter))


class Maps:
    """The maps of windows. The frames are read by `children`; what was made is kept."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int], dict[str, Any]] = OrderedDict()

    def of(self, index: LiveIndex, moment: Moment) -> dict[str, Any]:
        """Return the maps of a moment for JSON; Refused if the method has none or the file cannot be read."""
        key = index.model.key, moment.window_id
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        encoder = index.encoder
        if not has_maps(encoder.method):
            raise Refused(404, f"the method of {index.model.name} has no prompts in places of a picture to be drawn")
        window = next(
            (window for window in cut(moment.file.duration, encoder.window, encoder.stride)
             if (window[0] or 0.0) == moment.window.start), (moment.window.start, moment.window.end),
        )  # fmt: skip
        try:
            frames = self._children.run(read_window, encoder.reader, moment.path, *window)
        except ValueError as error:
            raise Refused(404, str(error).replace(str(moment.path), moment.shown)) from None
        found = index.with_model(draw, encoder, frames)
        with self._lock:
            self._kept[key] = found
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return found


def draw(encoder: Encoder, frames: Frames) -> dict[str, Any]:
    """Return the maps of the frames of a window for JSON.

    `times` are the seconds of the T frames in the file; `grid` counts rows and columns of patches, and `seen` says
    which part of the picture they cover: left, top, width, height as shares. Each layer has the chosen patches of each
    frame, numbered row by row, and how many prompts stand in each of the T - 1 gaps between frames.
    """
    method = encoder.method
    grid = method.clip.visual.grid
    mask = torch.from_numpy(frames.frame_mask)
    video = torch.from_numpy(frames.video)[mask][None].to(method.clip.logit_scale.device)
    layers: list[dict[str, Any]] = []
    with evaluating(method), encoder.autocast():
        pixels = normalise_for(method.clip, video)
        if isinstance(method, STOP):
            for maps in method.prompt_maps(pixels, mask[mask][None].to(video.device)):
                regions = _chosen(maps.spatial.region_mask[0]) if maps.spatial else [[] for _ in frames.times]
                prompts = maps.temporal.prompts_per_gap[0].tolist() if maps.temporal else []
                layers.append({"regions": regions, "prompts": [round(count) for count in prompts]})
        elif isinstance(method, STOPReleased):
            layers.append({"regions": _chosen(method.prompt_maps(pixels)[0][0].flatten(1)), "prompts": []})
    return {"times": frames.times, "grid": [grid, grid], "seen": list(frames.seen), "layers": layers}


def _chosen(region_mask: torch.Tensor) -> list[list[int]]:
    """Return the numbers of the chosen patches of each frame, of a mask `[T,P]`."""
    return [(row > 0.5).nonzero().flatten().tolist() for row in region_mask.float()]
