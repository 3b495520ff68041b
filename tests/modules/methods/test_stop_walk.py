"""The files that a training step of STOP passes through."""

import sys
from pathlib import Path

from modules.losses import symmetric_info_nce
from tests.modules.methods.small_stop import make_stop
from tests.tiny import TINY, tiny_batch

ROOT = Path(__file__).resolve().parents[3]
PRODUCT = ("modules", "engine", "dataloaders")
PARTS = {"intra_frame", "inter_frame", "dynamics", "frame_changes", "timing", "tokens"}
MOST = 18  # files under modules/; the task and the loop come on top


def test_a_step_stays_in_few_files():
    method, batch, names = make_stop(TINY).train(), tiny_batch(), set()

    def note(frame, event, _):
        if event == "call":
            names.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        text, clips = method(*batch)
        symmetric_info_nce(method.similarity(text, clips)).backward()
        method.after_step()
    finally:
        sys.setprofile(None)
    inside = [Path(name).relative_to(ROOT) for name in names if Path(name).is_relative_to(ROOT)]
    passed = sorted(path for path in inside if path.parts[0] in PRODUCT)
    listed = "\n".join(map(str, passed))
    assert {path.parts[0] for path in passed} == {"modules"}, listed
    assert {path.stem for path in passed if path.parts[1] == "stop"} == PARTS, listed
    assert len(passed) <= MOST, listed
