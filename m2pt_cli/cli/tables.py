"""A table that never breaks a word: on narrow terminals it drops rules, then columns, then becomes records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

# Characters between two cells of a table with rules, and length up to which a cell is never wrapped.
_LINED, _SHORT = 3, 20


@dataclass(frozen=True)
class _Column:
    title: str
    is_left: bool
    is_spare: bool


@dataclass(frozen=True)
class _Row:
    cells: tuple[str, ...]
    style: str


@dataclass
class FittingTable:
    """Rows and columns, printed in the first of these forms that fits the console without breaking a word.

    A table with rules; without rules; without its spare columns; a record per row, with the columns' titles.
    Cells and titles are plain text without markup.
    """

    _columns: list[_Column] = field(default_factory=list)
    _rows: list[_Row | None] = field(default_factory=list)  # None is a rule between two sections

    def add_column(self, title: str, *, left: bool = False, spare: bool = False) -> None:
        """Add a column: numbers, or left-aligned text if ``left``; a ``spare`` one is dropped first."""
        self._columns.append(_Column(title, left, spare))

    def add_row(self, *cells: str, style: str = "") -> None:
        """Add a row with a cell for each column."""
        if len(cells) != len(self._columns):
            raise ValueError(f"{len(cells)} cells in {len(self._columns)} columns")
        self._rows.append(_Row(cells, style))

    def add_section(self) -> None:
        """Add a rule under the rows so far."""
        self._rows.append(None)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        needed = [column for column in self._columns if not column.is_spare]
        # Characters between two cells; with rules there is one at both ends too.
        for columns, between in ((self._columns, _LINED), (self._columns, 2), (needed, 2), (needed, 1)):
            beside = between * (len(columns) - 1) + (4 if between == _LINED else 0)
            widths = self._widths(columns, options.max_width - beside)
            if widths is not None:
                yield self._table(columns, widths, between)
                return
        yield from self._records(options.max_width)

    def _widths(self, columns: Sequence[_Column], room: int) -> list[int] | None:
        """Return column widths that break no word and no short cell; None if they do not fit.

        rich shrinks the widest column first, and breaks its words while other columns could wrap at spaces.
        """
        widths, wanted = [], []
        for column in columns:
            cells = self._cells(column)
            words = [word for text in (column.title, *cells) for word in text.split()]
            least = max(map(_width, words), default=1)
            longest = max(map(_width, cells), default=1)
            widths.append(max(least, min(longest, _SHORT)))
            wanted.append(max(widths[-1], longest, _width(column.title)))
        if (left := room - sum(widths)) < 0:
            return None
        # The rest goes first to the columns that lack least, so that they need no wrapping.
        for place in sorted(range(len(widths)), key=lambda place: wanted[place] - widths[place]):
            given = min(left, wanted[place] - widths[place])
            widths[place] += given
            left -= given
        return widths

    def _cells(self, column: _Column) -> list[str]:
        place = self._columns.index(column)
        return [row.cells[place] for row in self._rows if row is not None]

    def _table(self, columns: Sequence[_Column], widths: Sequence[int], between: int) -> Table:
        if between == _LINED:
            table = Table()
        else:  # the box adds a space between two cells
            table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, between - 1, 0, 0))
        for column, width in zip(columns, widths, strict=True):
            justify: Literal["left", "right"] = "left" if column.is_left else "right"
            table.add_column(Text(column.title), justify=justify, overflow="fold", width=width)
        shown = [self._columns.index(column) for column in columns]
        for row in self._rows:
            if row is None:
                table.add_section()
            else:
                table.add_row(*(Text(row.cells[place]) for place in shown), style=row.style)
        return table

    def _records(self, width: int) -> Iterator[Text | Padding]:
        """Yield each row as its first cell, followed by its other cells with their titles."""
        for row in self._rows:
            if row is None:
                continue
            yield Text(row.cells[0], style="bold", overflow="fold")
            cells = zip(self._columns[1:], row.cells[1:], strict=True)
            pairs = [f"{column.title} {cell}".strip() for column, cell in cells if cell.strip()]
            for line in lines_of(pairs, ", ", width - 2):
                yield Padding(Text(line, overflow="fold"), (0, 0, 0, 2))


def _width(text: str) -> int:
    return Text(text).cell_len


def lines_of(parts: Sequence[str], separator: str, width: int) -> list[str]:
    """Join parts into lines of ``width``, broken between parts; a wider part gets a separate line."""
    lines: list[str] = []
    for part in parts:
        longer = f"{lines[-1]}{separator}{part}" if lines else part
        if lines and Text(longer).cell_len <= width:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines
