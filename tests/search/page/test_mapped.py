"""Weights in a mapped file are the same weights."""

import tempfile

import torch
from torch import nn

from search.page.mapped import map_weights
from tests.tiny import tiny_batch, tiny_clip


class Mixed(nn.Module):
    """Parameters of several shapes and types, one without a value and one twice."""

    def __init__(self) -> None:
        super().__init__()
        self.scalar = nn.Parameter(torch.tensor(1.5))
        self.narrow = nn.Parameter(torch.arange(7.0).bfloat16(), requires_grad=False)
        self.turned = nn.Parameter(torch.arange(6.0).view(2, 3).T)
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.again = self.turned


def is_mapped(parameter: torch.Tensor) -> bool:
    """Return whether the values lie in a file's mapping."""
    address = parameter.data_ptr()
    with open("/proc/self/maps") as maps:
        for line in maps:
            first, last = (int(number, 16) for number in line.split()[0].split("-"))
            if first <= address < last:
                return "deleted" in line
    return False


def test_parameters_keep_their_values_and_kinds():
    module, expected = Mixed(), Mixed()
    map_weights(module)
    assert module.again is module.turned
    for name, parameter in expected.named_parameters():
        own = module.get_parameter(name)
        assert torch.equal(own, parameter), name
        assert (own.dtype, own.requires_grad) == (parameter.dtype, parameter.requires_grad)
        assert is_mapped(own) == bool(own.numel()), name
    with torch.no_grad():
        module.scalar += 1
    assert module.scalar == 2.5


def test_a_clip_embeds_as_before():
    clip, (video, _, token_ids) = tiny_clip().eval(), tiny_batch()
    clip.requires_grad_(False)  # so that products of weights are kept, which must follow
    frames = video.flatten(0, 1)
    before = clip.visual(frames), clip.text(token_ids)
    map_weights(clip)
    assert all(map(torch.equal, before, (clip.visual(frames), clip.text(token_ids))))


def test_without_room_they_stay_in_memory(monkeypatch):
    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def tell(self):
            return 0

        def seek(self, *_):
            return 0

        def write(self, content: bytes) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", Full)
    module = Mixed()
    map_weights(module)
    assert torch.equal(module.turned, Mixed().turned)
    assert not is_mapped(module.turned)
