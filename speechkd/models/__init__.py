"""Speech encoders, projectors, language models, and the student built from them. `engine` loads them partitioned over ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechkd.models.exported import load_student as load_student

__all__ = ["load_student"]


def __getattr__(name: str) -> Any:
    if name == "load_student":
        from speechkd.models.exported import load_student

        return load_student
    raise AttributeError(name)
