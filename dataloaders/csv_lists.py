"""Csv files with a header, read strictly: a row that the csv rules would alter without a word is refused.

A row is a line. A quoted field with a line break in it, which csv allows, cannot be told from a quotation mark that
someone forgot to close, and that one swallows every row up to the next mark.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence

from dataloaders.quoting import some

Row = dict[str, str]  # by column, without surrounding space


def read_csv(text: str, name: str) -> tuple[list[str], Iterator[tuple[int, Row]]]:
    """The columns of a csv file, and its rows with the numbers of their lines, which are read as they are asked for.

    Args:
        text: the whole file; without a line there are no columns.
        name: the flag and the path, for messages.

    Raises:
        ValueError: a column comes twice; and, from the iterator too: a line has more or fewer fields than there are
            columns, text under a column without a name, a quotation mark that is not closed, or text behind one that
            is. Names the line.
    """
    lines = ((number, line) for number, line in enumerate(io.StringIO(text, newline=""), 1) if line.strip())
    number, first = next(lines, (1, ""))
    header = [column.strip() for column in _fields(first, f"{name}, line {number}")] if first else []
    twice = [column for column, count in Counter(header).items() if column and count > 1]
    if twice:
        raise ValueError(f"{name} has the column {some(twice)} more than once: leave one of them out.")
    return header, _rows(lines, header, name)


def columns_of(header: Sequence[str]) -> str:
    """The columns that a file has instead of those that are wanted, with a guess at the reason."""
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
    # The reader gets one line, so that a quotation mark that is not closed ends here and not thousands of rows later.
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
