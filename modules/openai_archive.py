"""Reading the tensors of a TorchScript archive, OpenAI's format for CLIP, without running the code in it.

An archive is a zip of code, a pickle of the modules' attributes, and one file per storage. `torch.jit.load` runs the
code of every `__setstate__` in it, which can write files. Here the code is never run: the unpickler knows storages,
tensors and plain containers only, and turns every scripted class into an object with attributes.

Layout: https://github.com/pytorch/pytorch/blob/main/torch/csrc/jit/docs/serialization.md
"""

import math
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# The types of storages in an archive, by their names in its pickle.
DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
MOST_ATTRIBUTES = 1_000_000  # names of attributes; OpenAI's largest archive has some ten thousand
DEEPEST = 64  # modules within modules
LARGEST_CODE = 1 << 26  # bytes
LARGEST_PICKLE = 1 << 26  # bytes; OpenAI's have some hundred thousand
FIX = "save its state_dict() with torch.save or as .safetensors and pass that file"


def is_archive(path: Path) -> bool:
    """Return whether a file is a TorchScript archive whose table of contents can be read."""
    try:
        if not path.is_file() or not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return False


def calls_gelu(path: Path) -> bool:
    """Return whether the code in an archive calls torch's GELU, as scripted models of open_clip do."""
    with zipfile.ZipFile(path) as archive:
        return any("torch.gelu(" in code for _, code in _code(archive))


def read_archive(path: Path) -> dict[str, Tensor]:
    """Return the parameters and buffers of a TorchScript archive by their names in its `state_dict()`, on the CPU.

    Raises:
        ValueError: if it holds anything besides modules with tensors; the message names it, and nothing is run.
        Exception: of any kind if it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        roots = [name.removesuffix("constants.pkl") for name in archive.namelist() if name.endswith("/constants.pkl")]
        assert roots, path  # `is_archive` has seen it
        contents = _Archive(archive, roots[0])
        root = contents.modules()
        own_names = _declared_names(archive)
    return dict(_Walk(own_names).tensors(root, "", 0))


def _code(archive: zipfile.ZipFile) -> Iterator[tuple[str, str]]:
    """Yield each module's name and text; ValueError if it is implausibly long, such as zeros that compress well."""
    entries = [entry for entry in archive.infolist() if entry.filename.endswith(".py") and "/code/" in entry.filename]
    if (size := sum(entry.file_size for entry in entries)) > LARGEST_CODE:
        raise ValueError(f"its code has {size:,} bytes, far more than any CLIP's: {FIX}.")
    for entry in entries:
        module = entry.filename.partition("/code/")[2].removesuffix(".py").replace("/", ".")
        yield module, archive.read(entry).decode(errors="replace")


def _declared_names(archive: zipfile.ZipFile) -> dict[str, set[str]]:
    """Return the names of parameters and buffers by a class's full name; the code has them in two lists."""
    names = {}
    for module, code in _code(archive):
        for found in re.finditer(
            r"^class (\w+)\(Module\):\n  __parameters__ = \[(.*)\]\n  __buffers__ = \[(.*)\]$", code, re.MULTILINE
        ):
            names[f"{module}.{found[1]}"] = set(re.findall(r'"([^"]+)"', found[2] + found[3]))
    return names


@dataclass
class _Walk:
    """A walk through the modules of an archive. One object may have many names, so the number of names is limited."""

    own_names: dict[str, set[str]]
    steps: int = 0

    def tensors(self, module: "_ScriptObject", start: str, depth: int) -> Iterator[tuple[str, Tensor]]:
        declared = self.own_names.get(module.full_name)
        attributes = module.__dict__.get("attributes", {})
        if not isinstance(attributes, dict):
            raise ValueError(f"{start or 'its module'} is saved by its own code, which would have to be run: {FIX}.")
        for name, value in attributes.items():
            self.steps += 1
            if self.steps > MOST_ATTRIBUTES or depth > DEEPEST:
                raise ValueError(f"it holds more modules, or deeper ones, than any CLIP: {FIX}.")
            if isinstance(value, _ScriptObject):
                yield from self.tensors(value, f"{start}{name}.", depth + 1)
            elif isinstance(value, Tensor) and (declared is None or name in declared):
                yield f"{start}{name}", value


class _ScriptObject:
    """An object of a class that the archive defines: its attributes without its code."""

    full_name = ""

    def __setstate__(self, state: Any) -> None:
        self.__dict__["attributes"] = state


class _Archive:
    """An open archive and the storages read from it."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        self.archive, self.root = archive, root
        self.storages: dict[tuple[str, str], Tensor] = {}
        names = archive.namelist()
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise ValueError(f"it was written on a machine with the other order of bytes: {FIX}.")

    def modules(self) -> _ScriptObject:
        entry = self._entry("data.pkl")
        if entry.file_size > LARGEST_PICKLE:
            raise ValueError(f"its data.pkl has {entry.file_size:,} bytes, far more than any CLIP's: {FIX}.")
        with self.archive.open(entry) as file:
            root = _Unpickler(file, self._storage).load()
        if not isinstance(root, _ScriptObject):
            raise ValueError(f"it holds a {type(root).__name__} and no module: {FIX}.")
        return root

    def _entry(self, name: str) -> zipfile.ZipInfo:
        try:
            entry = self.archive.getinfo(self.root + name)
        except KeyError:
            raise ValueError(f"it lacks its {name}.") from None
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"its {name} is compressed, which torch never does: {FIX}.")
        return entry

    def _storage(self, kind: str, key: str, count: int) -> Tensor:
        """Return a storage as a flat tensor; a second call returns the same memory."""
        if (kind, key) not in self.storages:
            entry, dtype = self._entry(f"data/{key}"), DTYPES[kind]
            if entry.file_size != count * dtype.itemsize:
                raise ValueError(f"its data/{key} has {entry.file_size} bytes for {count} numbers of {dtype}.")
            content = bytearray(self.archive.read(entry))  # checks the CRC-32 in the zip
            flat = torch.frombuffer(content, dtype=dtype) if count else torch.empty(0, dtype=dtype)
            self.storages[kind, key] = flat
        return self.storages[kind, key]


class _Unpickler(pickle._Unpickler):  # in Python; the one in C allocates memory of any size that a file states
    """Reads data.pkl. Each load makes the functions that a pickle gets anew, so no file can affect the next."""

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: Any, storage: Callable[[str, str, int], Tensor]) -> None:
        super().__init__(file)
        self.storage = storage

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _put(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        _put(self.stack[-1], items)

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        _put(self.stack[-1], items)

    def load_build(self) -> None:
        state, module = self.stack.pop(), self.stack[-1]
        if not isinstance(module, _ScriptObject):
            raise ValueError(f"it gives a state to something other than a module: {FIX}.")
        module.__setstate__(state)

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return type("ScriptObject", (_ScriptObject,), {"full_name": f"{module}.{name}"})
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *arguments: _rebuild(*arguments)
        if module == "torch" and name in DTYPES:
            return _Kind(name)
        if (module, name) == ("collections", "OrderedDict"):  # for a tensor's hooks, always empty
            return lambda: OrderedDict()
        if module == "torch.jit._pickle" and name in LISTS:
            return lambda values: values
        if (module, name) == ("torch.jit._pickle", "restore_type_tag"):
            return lambda value, tag: value
        if (module, name) == ("torch", "device"):
            return lambda *where: None
        raise ValueError(f"it asks for {module}.{name}, which is neither a tensor nor a plain container: {FIX}.")

    def persistent_load(self, reference: Any) -> Tensor:
        """Return the numbers of ("storage", type, key, device, count)."""
        match reference:
            case ("storage", _Kind() as kind, str() as key, _, int() as count) if count >= 0:
                return self.storage(str(kind), key, count)
        raise ValueError(f"it refers to something other than a storage: {FIX}.")


SETS = (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET)  # they hash their items; torch writes none
_Unpickler.dispatch = {
    code: getattr(_Unpickler, method.__name__)  # overridden by this class where it has the method
    for code, method in pickle._Unpickler.dispatch.items()
    if bytes([code]) not in SETS
}


def _put(target: Any, items: list[Any]) -> None:
    """Put alternating keys and values into a dictionary. Keys are never tuples: hashing deeply nested ones would take
    endless time."""
    if type(target) is not dict or not all(isinstance(key, str | int | float) for key in items[::2]):
        raise ValueError(f"it holds a dictionary of something other than names and numbers: {FIX}.")
    target.update(zip(items[::2], items[1::2], strict=True))


class _Kind(str):
    """The name of a storage's type; a separate class, so that no text in the pickle passes for one."""


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """Return a tensor in its storage; ValueError if it would reach beyond it."""
    numbers = [offset, *size, *stride]
    if not isinstance(storage, Tensor) or len(size) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError("a tensor in it has no valid shape.")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    count = math.prod(size)
    if count > len(storage) or (count and last >= len(storage)):
        raise ValueError("a tensor in it reaches beyond its storage.")
    return storage.as_strided(tuple(size), tuple(stride), offset)
