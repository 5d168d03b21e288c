"""Marks in sentences: `the {subject:taxi driver} near the {object:guards}` names two spans of words."""

import re
from collections.abc import Iterable

from interp.models.positions import RESERVED
from interp.runs.config import BadInput

Spans = dict[str, tuple[int, int]]  # of characters, by name: from the first up to the one after the last

MARK = re.compile(r"\{([^{}:]*):([^{}]*)\}")


def marked(name: str, words: str) -> str:
    """Words as {name:words}, spaces around them outside; nothing is no span."""
    return re.sub(r"\S.*\S|\S", lambda found: f"{{{name}:{found[0]}}}", words, count=1)


def unmarked(text: str) -> str:
    """A text without its marks, if all is right with them."""
    return MARK.sub(r"\2", text)


def read_marks(text: str) -> tuple[str, Spans]:
    """A text without its marks and without spaces around it, and the spans that were marked.

    Raises:
        ValueError: a brace belongs to no mark, as in a nested or an unclosed one, or a name is none, or stands twice.
    """
    plain, spans, end = "", Spans(), 0
    for mark in MARK.finditer(text):
        name, words = mark[1].strip(), mark[2]
        plain, end = plain + text[end:mark.start()], mark.end()
        if name in RESERVED or not re.fullmatch(r"[^\W\d][\w .-]*", name):
            raise ValueError(f"'{name}' cannot be the name of a mark")
        if name in spans:
            raise ValueError(f"the mark '{name}' stands twice")
        spans[name] = len(plain), len(plain) + len(words)
        plain += words
    plain += text[end:]
    if "{" in plain or "}" in plain:
        raise ValueError("a brace belongs to no mark {name:words}; marks do not stand inside each other")
    spaces = len(plain) - len(plain.lstrip())
    return plain.strip(), {name: (start - spaces, stop - spaces) for name, (start, stop) in spans.items()}


def without_marks(texts: Iterable[str], source: str) -> tuple[list[str], list[Spans]]:
    """As read_marks, of the rows of a file; raises BadInput, which names the row."""
    plain, spans = [], []
    for row, text in enumerate(texts):
        try:
            text, found = read_marks(text)
        except ValueError as error:
            raise BadInput(f"{source}: in row {row}, '{text}', {error}.") from None
        plain.append(text)
        spans.append(found)
    return plain, spans


def tokens_in(spans: Spans, offsets: list[tuple[int, int]], shift: int) -> dict[str, list[int]]:
    """The tokens that have a character of each span. offsets: of tokens in the text, which is longer at its front.

    Raises:
        ValueError: there is none, or two spans share one.
    """
    found, owner = dict[str, list[int]](), dict[int, str]()
    for name, (start, stop) in spans.items():
        found[name] = [token for token, (first, end) in enumerate(offsets)
                       if max(first, start + shift) < min(end, stop + shift)]
        if not found[name]:
            raise ValueError(f"no token has a character of the mark '{name}'")
        for token in found[name]:
            if owner.setdefault(token, name) != name:
                raise ValueError(f"the marks '{owner[token]}' and '{name}' share a token")
    return found
