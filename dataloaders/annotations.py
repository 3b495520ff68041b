"""Strict readers of the files that list a data set's videos and captions: text, csv and json.

A mistake in a file is one sentence that names the flag, the file, what is wrong and the fix: FileNotFoundError for what
is missing, ValueError for wrong content. We refuse what a lenient reader would change without a word, such as a csv row
with too many fields, or two json entries under one key.

A csv row is one line. A quoted field with a line break in it, which csv allows, cannot be told from a quotation mark
that someone forgot to close, and such a mark swallows every row up to the next one.
"""

import csv
import io
import json
import logging
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dataloaders.quoting import quoted, shorten, some

log = logging.getLogger("stop")

TEXT_CHUNK = 2**20  # characters that `read_text` checks at a time

Row = dict[str, str]  # by column, without surrounding space


# ---- splits ---------------------------------------------------------------------------------------------------------


def check_split(data_set: str, split: str, splits: Collection[str]) -> None:
    """Raise ValueError for a split that the data set does not have."""
    if split not in splits:
        raise ValueError(f"{data_set} has no split {shorten(split)!r}: pass {' or '.join(splits)}.")


def captions_for(
    video_ids: Iterable[str], captions: Mapping[str, Sequence[str]], listed_in: Path, captioned_in: Path
) -> dict[str, tuple[str, ...]]:
    """Return the captions of each listed video, without surrounding space; ValueError if a video has none.

    Empty captions are left out, and the log says how many.
    """
    stripped = {video_id: [caption.strip() for caption in captions.get(video_id, ())] for video_id in video_ids}
    chosen = {video_id: tuple(filter(None, texts)) for video_id, texts in stripped.items()}
    if without := [video_id for video_id, texts in chosen.items() if not texts]:
        raise ValueError(
            f"--data_path {captioned_in} has no caption for {shorten(without[0])}, the first of {len(without)} such "
            f"videos of {listed_in.name}: pass the file that belongs to this list."
        )
    if empty := sum(texts.count("") for texts in stripped.values()):
        log.info("attention: %s has %d empty captions, which are left out", captioned_in, empty)
    return chosen


def report_count(listed_in: Path, n_videos: int, published: int | None) -> None:
    """Note in the log if a split has another number of videos than the published one."""
    if published is not None and n_videos != published:
        # Not a warning, which the log repeats for every process.
        log.info("attention: %s gives %d videos, the published split has %d", listed_in, n_videos, published)


# ---- text -----------------------------------------------------------------------------------------------------------


def read_text(path: Path, flag: str) -> str:
    """Read a text file in UTF-8, with or without a byte order mark; `flag` is the flag that named it."""
    if not path.is_file():
        raise FileNotFoundError(f"{flag} {path} is not a file: correct the path, or download it.")
    chunks = []  # so that a video of gigabytes, passed as a list, is refused at its first chunk
    try:
        with path.open(encoding="utf-8-sig") as file:  # spreadsheet programs put a byte order mark first
            while chunk := file.read(TEXT_CHUNK):
                if "\0" in chunk:  # UTF-16 without its mark, or bytes that are not text
                    raise ValueError(
                        f"{flag} {path} is not a text file in UTF-8, it holds NUL characters: download it again."
                    )
                chunks.append(chunk)
    except UnicodeDecodeError as error:
        raise ValueError(f"{flag} {path} is not a text file in UTF-8: download it again.") from error
    return "".join(chunks)


def read_lines(path: Path, flag: str) -> list[str]:
    """Return the lines of a list, each once, without empty lines and surrounding space."""
    # Not splitlines(), which also cuts at characters that stand within sentences.
    all_lines = [line.strip() for line in read_text(path, flag).split("\n") if line.strip()]
    lines = list(dict.fromkeys(all_lines))
    if not lines:
        raise ValueError(f"{flag} {path} lists no video: download it again.")
    if repeated := len(all_lines) - len(lines):
        log.info("attention: %s repeats %d of its lines, which count once", path, repeated)
    return lines


# ---- csv ------------------------------------------------------------------------------------------------------------


def read_csv(text: str, name: str) -> tuple[list[str], Iterator[tuple[int, Row]]]:
    """Return the columns of a csv file, and an iterator over (line number, row).

    Args:
        text: the whole file; without a line there are no columns.
        name: the flag and the path, for messages.

    Raises:
        ValueError: if a column comes twice. From the iterator too, with the number of the line: if a line has more or
            fewer fields than there are columns, text under a column without a name, a quotation mark that is not
            closed, or text after a closing one.
    """
    lines = ((number, line) for number, line in enumerate(io.StringIO(text, newline=""), 1) if line.strip())
    number, first = next(lines, (1, ""))
    header = [column.strip() for column in _fields(first, f"{name}, line {number}")] if first else []
    twice = [column for column, count in Counter(header).items() if column and count > 1]
    if twice:
        raise ValueError(f"{name} has the column {some(twice)} more than once: leave one of them out.")
    return header, _rows(lines, header, name)


def columns_of(header: Sequence[str]) -> str:
    """Name the columns that a file has instead of the wanted ones, with a guess at the reason."""
    first = header[0] if header else ""
    if first.startswith(("{", "[")):
        reason = "; it looks like JSON"
    elif len(header) == 1 and (";" in first or "\t" in first):
        reason = "; separate them with commas"
    else:
        reason = ""
    return some(header) + reason


def _rows(lines: Iterator[tuple[int, str]], header: Sequence[str], name: str) -> Iterator[tuple[int, Row]]:
    for number, line in lines:
        where = f"{name}, line {number}"
        fields = [field.strip() for field in _fields(line, where)]
        if len(fields) > len(header):
            raise ValueError(
                f"{where}: more fields than columns ({len(fields)} for {len(header)}); put quotation marks around a "
                'text with commas, as in video0,"a dog, running".'
            )
        if len(fields) < len(header):
            absent = some(header[len(fields) :])
            raise ValueError(
                f"{where}: fewer fields than columns ({len(fields)} for {len(header)}), so that {absent} is empty; "
                "complete the line."
            )
        row = dict(zip(header, fields, strict=True))
        if any(field and not column for column, field in zip(header, fields, strict=True)):
            raise ValueError(f"{where}: a text stands in a column without a name; name the column, or quote the text.")
        yield number, row


def _fields(line: str, where: str) -> list[str]:
    # The reader gets one line, so that an unclosed quotation mark ends here and not thousands of rows later.
    try:
        return next(csv.reader([line.strip()], strict=True, skipinitialspace=True))
    except csv.Error as error:
        if line.lstrip().startswith(("{", "[")):
            fault = "this is JSON and not csv; pass a csv file"
        elif "field limit" in str(error):
            fault = f"a field has more than {csv.field_size_limit():,} characters; pass a csv file"
        elif "unexpected end" in str(error):
            fault = (
                "a quotation mark is not closed on this line; close it, and write a text with line breaks without them"
            )
        else:
            fault = "text follows a closing quotation mark; double the quotation marks that are part of a text"
        raise ValueError(f"{where}: {fault}.") from error


# ---- json -----------------------------------------------------------------------------------------------------------


def read_json(path: Path, flag: str, fix: str = "download it again") -> Any:
    """Read a json file; ValueError if it is not valid, or if one of its entries would be lost."""
    text = read_text(path, flag)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{flag} {path} is {error}: {fix}.") from error


def read_json_object(path: Path, flag: str) -> dict[str, Any]:
    """Read a json file that must hold an object."""
    content = read_json(path, flag)
    if not isinstance(content, dict):
        raise ValueError(f"{flag} {path} is not a JSON object with an entry for each video: download it again.")
    return content


def parse_json(text: str) -> Any:
    """Parse a JSON text. NaN and Infinity are accepted, as Python writes them; `number` refuses them where it is used.

    Raises:
        ValueError: "not valid JSON (why)"; also if it is nested too deeply, and if an object has two different values
            under one key, one of which would be lost.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("not valid JSON (it is nested too deeply)") from error
    except ValueError as error:  # also of a number with thousands of digits
        raise ValueError(f"not valid JSON ({error})") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if found[key] != value:
                raise ValueError(f"two different entries {quoted(key)} in one object")
    return found


def is_text(value: Any) -> bool:
    """Return whether a value is a string that can be tokenised and written to a file: it has no NUL, and no half of a
    surrogate pair, which JSON's escapes allow."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def is_texts(value: Any) -> bool:
    """Return whether a value is a list of such strings."""
    return isinstance(value, list) and all(map(is_text, value))


def as_id(value: Any) -> str | None:
    """Return a video's id, a string or a whole number, without surrounding space; None if it is neither, or empty."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value.strip() or None if is_text(value) else None


def number(value: Any) -> float | None:
    """Return the value if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def pairs_of(entries: Any, id_name: str, text_name: str, fault: str, wanted: str) -> list[tuple[str, str]]:
    """Return (id, text) of every object in a list.

    Raises ValueError, "`fault` (but what is there): `wanted`.", unless `entries` is a list of objects with a string or
    a whole number under `id_name` and a string under `text_name`.
    """

    def wrong(found: Any) -> ValueError:
        return ValueError(f"{fault} (but {quoted(found)}): {wanted}.")

    if not isinstance(entries, list):
        raise wrong(entries)
    pairs = []
    for entry in entries:
        video_id = as_id(entry.get(id_name)) if isinstance(entry, dict) else None
        if video_id is None or not is_text(entry.get(text_name)):
            raise wrong(entry)
        pairs.append((video_id, entry[text_name]))
    return pairs
