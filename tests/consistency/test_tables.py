"""Every table line leads to a part, every part has its table line, and the documents know the published ones."""

from __future__ import annotations

from typing import Any

import pytest

from speechkd.core.config import Config
from speechkd.core.errors import InputError
from speechkd.core.table import Table
from speechkd.data.sources import SOURCES
from speechkd.losses import LOSSES
from speechkd.models.projectors import PROJECTORS
from speechkd.teachers import TEACHERS
from tests.consistency.house import PACKAGE, ROOT

TABLES: dict[str, Table[Any]] = {"data/sources": SOURCES, "losses": LOSSES, "models/projectors": PROJECTORS, "teachers": TEACHERS}
ENTRIES = [pytest.param(table, name, id=f"{room}:{name}") for room, table in TABLES.items() for name in table]
INDEX = {"losses": "PAPERS.md", "models/projectors": "PAPERS.md", "data/sources": "shards/README.md", "teachers": "shards/README.md"}


def home(room: str, name: str) -> str:
    """The module in which a part's configuration, and so the part, is written."""
    return str(getattr(TABLES[room].get(name), "Config").__module__)


@pytest.mark.parametrize("room", TABLES)
def test_is_a_table_with_entries(room: str) -> None:
    assert isinstance(TABLES[room], Table) and list(TABLES[room])


@pytest.mark.parametrize(("table", "name"), ENTRIES)
def test_entry_is_a_documented_part_with_its_config(table: Table[object], name: str) -> None:
    part = table.get(name)
    assert part.__doc__
    assert issubclass(getattr(part, "Config"), Config)


@pytest.mark.parametrize("room", TABLES)
def test_entry_lives_in_its_room(room: str) -> None:
    assert all(home(room, name).startswith(f"speechkd.{room.replace('/', '.')}.") for name in TABLES[room])


@pytest.mark.parametrize("room", TABLES)
def test_unknown_name_is_answered_with_the_nearest(room: str) -> None:
    name = next(iter(TABLES[room]))
    with pytest.raises(InputError, match=f"did you mean `{name}`"):
        TABLES[room].get(name + "x")


@pytest.mark.parametrize("room", INDEX)
def test_entry_is_in_its_document(room: str) -> None:
    text = (ROOT / INDEX[room]).read_text(encoding="utf-8")
    assert not [name for name in TABLES[room] if f"`{name}`" not in text], INDEX[room]


@pytest.mark.parametrize("room", TABLES)
def test_no_part_is_forgotten(room: str) -> None:
    """A file with a fixed `kind` or `backend`, or with a LOSS, and no table line is a part that nobody can reach.

    Blocks of live teachers (`teachers/live_config.py`) are a closed union of pydantic's, not a table.
    """
    marks = ("    kind: Literal[", "    backend: Literal[", "\nLOSS = ")
    parts = {path.stem for path in (PACKAGE / room).glob("*.py") if any(mark in path.read_text(encoding="utf-8") for mark in marks)}
    assert parts - {"live_config"} <= {home(room, name).rpartition(".")[2] for name in TABLES[room]}
