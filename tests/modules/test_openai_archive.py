"""TorchScript archives give the tensors that torch would give, and nothing in them is ever run."""

import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modules.clip_weights import load_clip, to_openai_keys
from modules.openai_archive import LARGEST_CODE, calls_gelu, is_archive, read_archive
from modules.weight_files import read_state_dict
from tests.modules.clip_files import TINY as SMALL_WORDS
from tests.modules.clip_files import save_archive
from tests.tiny import tiny_clip


class Inner(nn.Module):
    """Parameters and buffers of many kinds, and attributes that are neither."""

    def __init__(self) -> None:
        super().__init__()
        self.transposed = nn.Parameter(torch.randn(3, 2).half().t())
        self.strided = nn.Parameter(torch.randn(4, 6)[1::2, ::3])
        self.register_buffer("counts", torch.arange(5))
        self.register_buffer("flags", torch.tensor([True, False]), persistent=False)
        self.register_buffer("bf16", torch.randn(3).bfloat16())
        self.register_buffer("nothing", torch.zeros(0, 4))
        self.mask = torch.full((2, 2), float("-inf"))  # not a weight; torch leaves it out
        self.sizes = [1, 2]
        self.name = "inner"

    def forward(self, x: Tensor) -> Tensor:
        return (
            x @ self.transposed.float() @ self.transposed.float().t()
            + self.strided.sum()
            + self.mask.sum()
            + self.sizes[0]
        )


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.layers[1].weight = self.layers[0].weight
        self.again = self.inner
        self.scale = nn.Parameter(torch.tensor(2.5, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.layers(self.inner(x))) * self.scale


def script(module: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():  # torch discourages the format, but it is the one OpenAI published
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), path)
    return path


def trace(module: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(module, torch.randn(1, 2)), path)
    return path


def by_torch(path: Path) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(path).state_dict()


@pytest.mark.parametrize("make", [script, trace])
def test_tensors_are_torchs(tmp_path: Path, make: Callable[[nn.Module, Path], Path]) -> None:
    torch.manual_seed(0)
    path = make(Outer(), tmp_path / "model.pt")
    found, expected = read_archive(path), by_torch(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor), name
    assert "inner.mask" not in found
    shared = found["layers.0.weight"], found["layers.1.weight"]
    assert shared[0].untyped_storage().data_ptr() == shared[1].untyped_storage().data_ptr()


def test_a_whole_clip_that_was_traced(tmp_path: Path) -> None:
    """Like OpenAI's archives it has forward code, in half precision."""
    clip = tiny_clip()

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clip = clip

        def forward(self, pixels: Tensor) -> Tensor:
            return self.clip.visual(pixels)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Both(), torch.randn(1, 3, 32, 32), check_trace=False), tmp_path / "clip.pt")
    found, expected = read_archive(tmp_path / "clip.pt"), by_torch(tmp_path / "clip.pt")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_activation_is_in_the_code(tmp_path: Path) -> None:
    script(nn.Sequential(nn.Linear(2, 2), nn.GELU()), tmp_path / "gelu.pt")
    script(nn.Sequential(nn.Linear(2, 2), nn.SiLU()), tmp_path / "other.pt")
    assert calls_gelu(tmp_path / "gelu.pt")
    assert not calls_gelu(tmp_path / "other.pt")
    clip = tiny_clip(architecture=SMALL_WORDS)
    save_archive(to_openai_keys(clip.state_dict()), tmp_path / "clip.pt")
    assert load_clip(tmp_path / "clip.pt").architecture.activation == "quick_gelu"
    assert load_clip(tmp_path / "clip.pt", activation="gelu").architecture.activation == "gelu"


class Writes(nn.Module):
    """Writes a file when torch loads it."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.weight = nn.Parameter(torch.ones(2))

    @torch.jit.export
    def __getstate__(self) -> tuple[str, Tensor, bool]:
        return self.path, self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, Tensor, bool]) -> None:
        self.path = state[0]
        self.training = state[2]
        self.weight = state[1] * torch.from_file(self.path, True, 4, dtype=torch.uint8).fill_(65)[0]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def test_code_that_runs_on_loading_does_not_run(tmp_path: Path) -> None:
    target, path = tmp_path / "written", tmp_path / "model.pt"
    script(Writes(str(target)), path)
    by_torch(path)
    assert target.read_bytes() == b"AAAA"  # so the archive is a hostile one
    target.unlink()
    for read in (read_state_dict, load_clip):
        with pytest.raises(ValueError, match=r"model\.pt is not a weights file: its module is saved by its own code"):
            read(path)
    assert not target.exists()


def rewrite(path: Path, change: Callable[[str, bytes], bytes | None], compression: int = zipfile.ZIP_STORED) -> None:
    """Rewrite an archive with other contents; None leaves an entry out."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in contents.items():
            if (changed := change(name, content)) is not None:
                archive.writestr(name, changed)


def with_pickle(content: bytes) -> Callable[[str, bytes], bytes]:
    return lambda name, old: content if name.endswith("/data.pkl") else old


class Calls:
    """Pickles to a call of `function`."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable, tuple]:
        return self.call


def doubled(levels: int) -> bytes:
    """Return a pickle of modules in modules, each in two places: few bytes with 2^levels names."""
    content = b"\x80\x02"
    for level in range(levels + 1):
        content += b"c__torch__\nM\n)\x81}(X\x01\x00\x00\x00aN"
        content += b"" if level == 0 else b"X\x01\x00\x00\x00bh%cX\x01\x00\x00\x00ch%c" % (level - 1, level - 1)
        content += b"ubq%c" % level
    return content + b"."


def doubled_tuples(levels: int) -> bytes:
    """Return a pickle of tuples that hold one tuple twice, level by level: a hash takes 2^levels steps."""
    return b")q\x00" + b"".join(b"h%ch%c\x86q%c" % (level, level, level + 1) for level in range(levels))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            pickle.dumps(Calls(print, "run"), 2),
            r"asks for (__builtin__|builtins)\.print, which is neither a tensor nor",
        ),
        (pickle.dumps(Calls(torch.load, "file"), 2), r"asks for torch\.serialization\.load"),
        (pickle.dumps([1, 2], 2), "holds a list and no module"),
        (b"\x80\x02X\x01\x00\x00\x00aQ.", "refers to something other than a storage"),
        (doubled(40), "holds more modules, or deeper ones, than any CLIP"),
        (doubled(100), "holds more modules, or deeper ones, than any CLIP"),
    ],
)
def test_other_pickles_are_refused_by_what_they_ask(tmp_path: Path, content: bytes, message: str) -> None:
    path = script(nn.Linear(2, 2), tmp_path / "model.pt")
    rewrite(path, with_pickle(content))
    with pytest.raises(ValueError, match=rf"model\.pt is not a weights file: it {message}"):
        read_state_dict(path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "content",
    [
        b"}(" + doubled_tuples(60) + b"K\x01u.",
        b"}" + doubled_tuples(60) + b"K\x01s.",
        b"(" + doubled_tuples(60) + b"K\x01d.",
        b"\x8f(" + doubled_tuples(60) + b"\x90.",
        b"(" + doubled_tuples(60) + b"\x91.",
        b"}r\xff\xff\xff\xff.",  # remembered as number 2^32 - 1, for which a list of that many places was made
        b"\x8e\x00\x00\x00\x00\x00\x01\x00\x00x.",  # claims a terabyte of bytes
    ],
)
def test_few_bytes_take_neither_time_nor_memory(tmp_path: Path, content: bytes) -> None:
    path = script(nn.Linear(2, 2), tmp_path / "model.pt")
    rewrite(path, with_pickle(b"\x80\x04" + content))
    with pytest.raises(ValueError, match="not a weights file"):
        read_state_dict(path)


def test_a_pickles_changes_do_not_outlast_it(tmp_path: Path) -> None:
    """BUILD sets attributes of whatever is on the stack, also of functions that were asked for."""
    path = script(nn.Linear(2, 2), tmp_path / "model.pt")
    expected = read_state_dict(path)
    ask = b"ctorch._utils\n_rebuild_tensor_v2\n"
    hostile = script(nn.Linear(2, 2), tmp_path / "hostile.pt")
    rewrite(hostile, with_pickle(b"\x80\x02" + ask + b"N}X\x0c\x00\x00\x00__defaults__N)s\x86b."))
    with pytest.raises(ValueError, match="not a weights file"):
        read_state_dict(hostile)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in read_state_dict(path).items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda name, old: old[:-1] if "/data/" in name else old,
            "has 15 bytes for 4 numbers|has 7 bytes for 2 numbers",
        ),
        (lambda name, old: None if name.endswith("/data/0") else old, "lacks its data/0"),
        (lambda name, old: None if name.endswith("/data.pkl") else old, "lacks its data.pkl"),
        (lambda name, old: b"big" if name.endswith("byteorder") else old, "the other order of bytes"),
        (with_pickle(b"not a pickle"), "download it again"),
        (with_pickle(b""), "download it again"),
    ],
)
def test_damaged_archives(tmp_path: Path, change: Callable[[str, bytes], bytes | None], message: str) -> None:
    path = script(nn.Linear(2, 2), tmp_path / "model.pt")
    rewrite(path, change)
    assert is_archive(path)
    with pytest.raises(ValueError, match=message) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = script(nn.Linear(2, 2), tmp_path / "model.pt")
    weight = by_torch(path)["weight"].numpy().tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(weight) + 5] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match="download it again"):
        read_state_dict(path)


def test_any_byte_may_be_wrong(tmp_path: Path) -> None:
    """The archive loads unchanged, if the byte is in nothing that is read, or there is one sentence."""
    path = script(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), tmp_path / "model.pt")
    whole, expected = path.read_bytes(), by_torch(path)
    damaged, refused = tmp_path / "damaged.pt", 0
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 300).tolist():
        content = bytearray(whole)
        content[place] ^= 1 << int(rng.integers(8))
        damaged.write_bytes(content)
        try:
            state = read_state_dict(damaged)
        except ValueError:
            refused += 1
            continue
        assert state.keys() == expected.keys(), place
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items()), place
    assert refused > 100


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    """A few bytes could stand for gigabytes."""
    path = script(nn.Linear(2, 2), tmp_path / "model.pt")
    rewrite(path, lambda name, old: old, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="is compressed as torch never does"):
        read_state_dict(path)


def test_code_that_unpacks_to_far_more_is_refused(tmp_path: Path) -> None:
    path = script(nn.Linear(2, 2), tmp_path / "model.pt")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/code/more.py", bytes(LARGEST_CODE))
    assert path.stat().st_size < LARGEST_CODE / 100
    with pytest.raises(ValueError, match=r"its code has 67,.* bytes, far more than any CLIP's"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((0, (3, 2), (2, 1)), "larger than its storage|beyond its storage"),
        ((1, (2, 2), (2, 1)), "beyond its storage"),
        ((0, (2, 2), (-2, 1)), "no valid shape"),
        ((0, (1 << 40,), (0,)), "beyond its storage"),
        ((0, (2, 2), (2,)), "no valid shape"),
    ],
)
def test_a_tensor_beyond_its_storage(tmp_path: Path, shape: tuple, message: str) -> None:
    path = script(nn.Linear(2, 2, bias=False), tmp_path / "model.pt")
    offset, size, stride = (pickle.dumps(part, 2)[2:-1] for part in shape)
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X"
    tensor += b"\x03\x00\x00\x00cpuK\x04tQ" + offset + size + stride + b"\x89ccollections\nOrderedDict\n)RtR"
    module = b"\x80\x02c__torch__.torch.nn.modules.linear\nLinear\n)\x81}X\x06\x00\x00\x00weight" + tensor + b"sb."
    rewrite(path, with_pickle(module))
    with pytest.raises(ValueError, match=message):
        read_state_dict(path)


def test_other_torch_files_say_what_is_wrong(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(2), "path": Path("x")}, tmp_path / "run.pt")
    with pytest.raises(
        ValueError, match=r"run\.pt is not a weights file: it holds Python objects .* state_dict"
    ) as caught:
        read_state_dict(tmp_path / "run.pt")
    assert "download" not in str(caught.value)
