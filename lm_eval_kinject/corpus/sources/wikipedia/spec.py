"""Which articles of Wikipedia make up a corpus: the settings of `kinject corpus wikipedia`.

What it is for: a `Selection` names pages, hub pages whose links are followed once, and category trees with a window of
months; those of the five MMLU subjects and of the paper's current events come with the package. What it does not do: it
asks nobody which articles these are today (`fetch.py`, `dump.py`).

The one idea: Wikipedia has no field for when something happened, but its categories of events have it in their names
("August 2023 events in the United States"), so that a window follows these and no others.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lm_eval_kinject.errors import ArgumentError, CorpusError

__all__ = ["Selection", "bundled_selections", "chosen_selection", "month_of", "read_selection"]

_BUNDLED = Path(__file__).with_name("selections.yaml")
_MONTHS = "January February March April May June July August September October November December".lower().split()
_MONTH = re.compile(rf"\b({'|'.join(_MONTHS)})[ _](\d{{4}})\b|\b(\d{{4}})[ _]({'|'.join(_MONTHS)})\b", re.IGNORECASE)


class Selection(BaseModel):
    """Articles by their names, by the hub pages that link to them, and by categories."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = Field(description="for people and the corpus's card")
    pages: tuple[str, ...] = Field(default=(), description="articles by their titles")
    hubs: tuple[str, ...] = Field(default=(), description="pages whose links to articles are followed once")
    categories: tuple[str, ...] = Field(default=(), description="categories, without the word Category:")
    depth: int = Field(default=3, ge=0, le=20, description="levels of subcategories that are followed")
    since: str | None = Field(default=None, pattern=r"^\d{4}-(0[1-9]|1[0-2])$", description="first month, YYYY-MM")
    until: str | None = Field(default=None, pattern=r"^\d{4}-(0[1-9]|1[0-2])$", description="last month, YYYY-MM")

    @field_validator("categories")
    @classmethod
    def _without_namespace(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(re.sub(r"^\s*category\s*:\s*", "", name, flags=re.IGNORECASE) for name in names)

    @model_validator(mode="after")
    def _makes_sense(self) -> Selection:
        if not (self.pages or self.hubs or self.categories):
            raise ValueError("it selects nothing: give pages, hubs or categories")
        if self.since and self.until and self.since > self.until:
            raise ValueError(f"since={self.since} is after until={self.until}")
        if (self.since or self.until) and not self.categories:
            raise ValueError("since and until choose among categories by month: give categories")
        return self

    def follows(self, category: str, month: str | None) -> tuple[bool, str | None]:
        """Whether a category below one of ``month`` is looked into, and the month of its articles (YYYY-MM)."""
        own = month_of(category) or month
        if own is None or not (self.since or self.until):
            return True, own
        return (self.since or "") <= own <= (self.until or "9999"), own

    def takes(self, month: str | None) -> bool:
        """Whether articles of a category of that month are taken: with a window, only those of a month in it."""
        return month is not None or not (self.since or self.until)


def month_of(name: str) -> str | None:
    """The month that a name states, as YYYY-MM: ``August 2023 events in Ohio`` is ``2023-08``."""
    match = _MONTH.search(name)
    if match is None:
        return None
    month, year = (match[1], match[2]) if match[1] else (match[4], match[3])
    return f"{year}-{_MONTHS.index(month.lower()) + 1:02}"


def bundled_selections() -> list[str]:
    """Names that `read_selection` knows."""
    return sorted(_read(_BUNDLED))


def read_selection(name: str) -> tuple[str, Selection]:
    """A selection and its name: a bundled one, or a YAML file with the fields of one.

    Raises:
        CorpusError: there is none of that name, or the file isn't YAML.
        ArgumentError: all that is wrong with its fields.
    """
    bundled = _read(_BUNDLED)
    if name in bundled:
        return name, Selection(**bundled[name])
    path = Path(name).expanduser()
    if not path.is_file():
        near = difflib.get_close_matches(name, bundled, n=2, cutoff=0.5)
        guess = f" Did you mean {' or '.join(near)}?" if near else ""
        raise CorpusError(
            f"There is no selection {name!r}.{guess} Give one of {', '.join(sorted(bundled))}, a YAML file, or "
            f"a new name with --category."
        )
    return path.stem, selection_of(_read(path), path.name)


def chosen_selection(name: str, categories: tuple[str, ...], given: dict[str, Any]) -> tuple[str, Selection]:
    """A selection by its name, with other settings where some are given; with categories, a new one of that name."""
    if categories:
        return name, selection_of({"title": ", ".join(categories), "categories": categories, **given}, "the selection")
    name, selection = read_selection(name)
    return name, selection_of({**selection.model_dump(), **given}, "the selection") if given else selection


def selection_of(fields: Any, where: str) -> Selection:
    """A selection of its fields; all that is wrong with them at once."""
    if not isinstance(fields, dict):
        raise ArgumentError("it must be a mapping with title, and pages, hubs or categories", where)
    try:
        return Selection(**fields)
    except ValidationError as problem:
        found = problem.errors()
        raise ArgumentError(
            [f"{'.'.join(map(str, one['loc'])) or 'it'}: {one['msg'].removeprefix('Value error, ')}." for one in found],
            where,
        ) from problem


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise CorpusError(f"{path.name} is no YAML ({' '.join(str(problem).split())[:200]}): mend it.") from problem
