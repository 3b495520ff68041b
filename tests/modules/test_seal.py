"""A sealed file never loads as something else after a single bit has flipped."""

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from modules.clip_weights import load_clip, read_state_dict
from modules.openai_archive import is_archive
from modules.seal import DIGEST, MARK, DamagedFileError, check_archive, check_seal, check_sealed_file, seal

SMALL_CLIP = Path(__file__).parent.parent.parent / "pretrained/moving_shapes_clip.safetensors"
TENSORS = {
    "a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "a.bias": torch.zeros(3, dtype=torch.float16),
    "b": torch.tensor(7),
    "none": torch.zeros(0, 4),
}
METADATA = {"format": "some format 1", "settings": '{"lr": 0.1, "name": "a \\"b\\""}'}


@pytest.fixture
def sealed(tmp_path) -> Path:
    path = tmp_path / "sealed.safetensors"
    save_file(TENSORS, path, seal(TENSORS, METADATA))
    return path


def content(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def test_a_whole_file_passes_and_one_without_a_seal_is_recognised(sealed, tmp_path):
    tensors, metadata = content(sealed)
    assert check_seal(sealed, tensors, metadata)
    assert check_sealed_file(sealed, tensors)
    assert {name: metadata[name] for name in METADATA} == METADATA
    plain = tmp_path / "plain.safetensors"
    save_file(TENSORS, plain, METADATA)
    assert not check_seal(plain, *content(plain))
    save_file(TENSORS, plain)
    assert not check_sealed_file(plain, load_file(plain))


def test_every_bit_counts(sealed):
    """Flip all bits of the tensors and of the seal's own names, and one of each byte of the rest of the header. The
    file does not open, its seal is broken, or exactly the same is read from it."""
    whole, (tensors, metadata) = sealed.read_bytes(), content(sealed)
    begin = 8 + int.from_bytes(whole[:8], "little")
    bits = set(range(64)) | set(range(8 * begin, 8 * len(whole)))
    bits |= {8 * byte + int(bit) for byte, bit in enumerate(np.random.default_rng(0).integers(0, 8, begin))}
    for name in (DIGEST, MARK):
        place = 8 * whole.index(f'"{name}"'.encode())
        bits |= set(range(place, place + 8 * len(f'"{name}":'.encode())))
    refused = 0
    for bit in sorted(bits):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        sealed.write_bytes(damaged)
        try:
            read, said = content(sealed)
            assert check_seal(sealed, read, said), bit
        except (SafetensorError, DamagedFileError):
            refused += 1
            continue
        assert said == metadata, bit
        assert read.keys() == tensors.keys(), bit
        for name, tensor in tensors.items():
            assert read[name].dtype == tensor.dtype, bit
            assert torch.equal(read[name], tensor), bit
    assert refused > 0.99 * len(bits)


def test_the_small_clip_that_comes_with_the_project_is_sealed(tmp_path):
    assert check_sealed_file(SMALL_CLIP, load_file(SMALL_CLIP))
    damaged = bytearray(SMALL_CLIP.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"damaged\.safetensors: is damaged \(its content does not match its own"):
        load_clip(path)
    with pytest.raises(ValueError, match="is damaged"):
        read_state_dict(path)


def test_what_torch_saved_is_checked_by_its_own_checksums(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"visual.proj": torch.arange(1000.0)}, path)
    assert torch.equal(read_state_dict(path)["visual.proj"], torch.arange(1000.0))
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(torch.tensor([500.0, 501.0]).numpy().tobytes())] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(
        ValueError, match=r"weights\.pt: is damaged \(the checksum of \S+ in it is wrong\); download it"
    ):
        read_state_dict(path)


def test_an_archive_that_says_it_spans_disks_is_damaged(tmp_path):
    """`zipfile.is_zipfile` raises an error for it instead of returning True or False."""
    path = tmp_path / "cut.pt"
    path.write_bytes(struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 2) + b"PK\x05\x06" + bytes(18))
    with pytest.raises(DamagedFileError, match=r"cut\.pt: is damaged .*multiple disks"):
        check_archive(path)
    assert not is_archive(path)


def test_what_may_unpack_to_far_more_is_refused(tmp_path):
    whole, packed = tmp_path / "whole.pt", tmp_path / "packed.pt"
    torch.save({"a": torch.zeros(1000)}, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name))
    check_archive(whole)
    with pytest.raises(DamagedFileError, match="is compressed as torch never does"):
        check_archive(packed)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_code_that_is_compressed_in_another_way_is_refused(tmp_path, method):
    """A wrong bit in an archive's table can say so; unpacking then fails with errors of bz2 and lzma."""
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"")
        archive.writestr("model/code/a.py", b"pass" * 100, compress_type=zipfile.ZIP_DEFLATED)
    check_archive(path)
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")  # of the code, in the table
    content[entry + 10 : entry + 12] = struct.pack("<H", method)
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match="is compressed as torch never does"):
        check_archive(path)
