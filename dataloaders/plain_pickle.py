"""Read pickles of text in lists and dictionaries without running anything, in time and memory proportional to the file.

This is Python's own pickle interpreter without most of its instructions. We removed those that call something,
except for two kinds of dictionary; those that hash anything but text, since hashing a tuple of tuples of tuples takes
exponential time; and numbers, which no text needs.
"""

import io
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any, NoReturn

from dataloaders.quoting import quoted

# All types that a pickle may name, as Python 3 and Python 2 call them.
PLAIN_TYPES: dict[tuple[str, str], type] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    **{(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in (dict, list)},
}
INSTRUCTIONS = (
    *("PROTO", "FRAME", "STOP", "MARK", "NONE", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET"),
    *("LONG_BINGET", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "EMPTY_LIST", "LIST", "APPEND", "APPENDS"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE"),
)


def load_plain(content: bytes) -> Any:
    """Read a pickle of any protocol; text that Python 2 wrote comes as bytes.

    A value that the pickle refers to several times is one object, so the content may be far larger when written out:
    set a limit before you walk over it.

    Raises:
        Exception: of many kinds, if the pickle is damaged or asks for something else.
    """
    return _Reader(io.BytesIO(content), encoding="bytes").load()


class _Reader(pickle._Unpickler):  # the version written in Python; the one in C has all instructions
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PLAIN_TYPES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return PLAIN_TYPES[module, name]

    def load_reduce(self) -> None:
        """Turn `OrderedDict()` and `defaultdict(list)`, which get their entries later, into plain dictionaries."""
        arguments, kind = self.stack.pop(), self.stack.pop()
        if kind not in (OrderedDict, defaultdict) or arguments not in ((), (None,), (dict,), (list,)):
            raise pickle.UnpicklingError("it makes objects")
        self.stack.append({})

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append(_add({}, items))

    def load_setitems(self) -> None:
        items = self.pop_mark()
        _add(self.stack[-1], items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _add(self.stack[-1], [key, value])


def _add(target: dict[str | bytes, Any], items: list[Any]) -> dict[str | bytes, Any]:
    """Put alternating keys and values into a dictionary."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) not in (str, bytes):
            raise pickle.UnpicklingError("a key of a dictionary is not text")
        if target.setdefault(key, value) is not value:
            raise pickle.UnpicklingError(f"it has {quoted(key)} twice")
    return target


class _Instructions(dict[int, Callable[[_Reader], None]]):
    def __missing__(self, code: int) -> NoReturn:
        raise pickle.UnpicklingError(f"it holds more than text in lists and dictionaries, an instruction {chr(code)!r}")


_Reader.dispatch = _Instructions(  # type: ignore[assignment]  # only methods of this class
    (code, getattr(_Reader, pickle._Unpickler.dispatch[code].__name__))
    for code in (getattr(pickle, name)[0] for name in INSTRUCTIONS)
)
