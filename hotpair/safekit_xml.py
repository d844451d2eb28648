"""Reads an XML document into plain elements with their line numbers. Pure.

It is somebody's file: no document type and no entities of its own (they are how a small file becomes a large one, or
reads another), and limits on everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.parsers import expat

LARGEST_DOCUMENT = 1 << 20  # bytes
DEEPEST = 32
ELEMENTS = 20_000


class BadXml(Exception):
    """The text says what is wrong, and in which line."""


@dataclass
class Element:
    name: str
    attributes: dict[str, str]
    line: int
    children: list[Element] = field(default_factory=list)

    def all(self, name: str) -> Iterator[Element]:
        """Children of that name."""
        return (child for child in self.children if child.name == name)

    def first(self, name: str) -> Element | None:
        return next(self.all(name), None)

    def walk(self) -> Iterator[Element]:
        """This one and everything below it."""
        yield self
        for child in self.children:
            yield from child.walk()


def parse(data: bytes) -> Element:
    """The root element; text between elements is left out. Raises BadXml."""
    if len(data) > LARGEST_DOCUMENT:
        raise BadXml(f"it has more than {LARGEST_DOCUMENT} bytes")
    reader = _Reader()
    try:
        reader.parser.Parse(data, True)
    except expat.ExpatError as error:
        raise BadXml(f"line {error.lineno}: this is not XML: {expat.errors.messages[error.code]}") from error
    except (LookupError, ValueError) as error:  # an encoding that Python does not know
        raise BadXml(f"line 1: this is not XML: {error}") from error
    assert reader.root is not None, "expat refuses a document without an element"
    return reader.root


class _Reader:
    def __init__(self) -> None:
        self.root: Element | None = None
        self._open: list[Element] = []
        self._count = 0
        self.parser = expat.ParserCreate()
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.StartDoctypeDeclHandler = self._doctype

    def _line(self) -> int:
        return self.parser.CurrentLineNumber

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._count += 1
        if self._count > ELEMENTS or len(self._open) >= DEEPEST:
            raise BadXml(f"line {self._line()}: more than {ELEMENTS} elements, or more than {DEEPEST} levels")
        element = Element(name, attributes, self._line())
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)

    def _end(self, name: str) -> None:
        self._open.pop()

    def _doctype(self, name: str, system: str | None, public: str | None, internal: int) -> None:
        raise BadXml(f"line {self._line()}: a document type (DOCTYPE) is not read: remove it, and its entities")
