"""Read the project's Markdown: code blocks, inline code, links, headings, tables and commands."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


class CodeBlock(NamedTuple):
    language: str
    code: str


def code_blocks(text: str) -> list[CodeBlock]:
    """Return the fenced blocks in their order."""
    return [CodeBlock(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]


def prose(text: str) -> str:
    """Return the text without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def inline_code(text: str) -> list[str]:
    """Return the text between backticks outside of blocks; a line break counts as a space."""
    return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", prose(text))]


def links(text: str) -> list[str]:
    """Return the targets of links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(text))


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings."""
    titles = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def section(text: str, title: str) -> str:
    """Return the text from a second-level heading to the next."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def table(text: str, header: str) -> list[list[str]]:
    """Return the cells of the table whose first line begins with `header`."""
    lines = text[text.index(header) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def quoted(cell: str) -> list[str]:
    """Return the names between backticks."""
    return re.findall(r"`([^`]+)`", cell)


@dataclass(frozen=True)
class Command:
    """A shell command: variables set in front of it, the script or module it runs, and its arguments."""

    variables: dict[str, str]
    program: str  # a path from the root of the repository
    arguments: list[str]


def commands(text: str) -> list[Command]:
    """Return the commands of bash blocks and of inline code that run Python or bash."""
    lines = [line for language, code in code_blocks(text) if language == "bash" for line in joined(code)]
    lines += [code for code in inline_code(text) if re.match(r"([A-Za-z_]+=\S+ )*(python|bash) \S", code)]
    return [command(line) for line in lines]


def joined(code: str) -> list[str]:
    """Return the lines of a block without comments; a line that ends in a backslash goes on in the next."""
    lines = code.replace("\\\n", " ").splitlines()
    return [line for line in lines if shlex.split(line, comments=True)]


def command(line: str) -> Command:
    """Parse one command: Python, bash, or an installation of what a file lists; raise ValueError for any other."""
    words = shlex.split(line, comments=True)
    variables = {}
    while re.match(r"[A-Za-z_]+=", words[0]):
        name, value = words.pop(0).split("=", 1)
        variables[name] = value
    match words:
        case ["python", "-m", module, *arguments]:
            path = module.replace(".", "/")
            return Command(variables, f"{path}/__main__.py" if (ROOT / path).is_dir() else f"{path}.py", arguments)
        case ["python" | "bash", program, *arguments]:
            return Command(variables, program, arguments)
        case ["pip", "install", "-r", requirements]:
            return Command(variables, requirements, [])
    raise ValueError(f"runs neither Python nor bash: {line}")
