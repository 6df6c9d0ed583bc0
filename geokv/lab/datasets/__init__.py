"""The small real data set that the demo writes: the time zones of the world, public domain; see the head of zones.tsv."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Final

FILE: Final = "zones.tsv"


@dataclass(frozen=True, slots=True)
class Zone:
    """One time zone, as in the file."""

    name: str
    coordinates: str
    country_codes: tuple[str, ...]
    countries: tuple[str, ...]
    comment: str

    @property
    def region(self) -> str:
        """The first part of the name: Europe, America and so on."""
        return self.name.partition("/")[0]

    def as_json(self, **more: object) -> bytes:
        """As a value to store."""
        return json.dumps({**asdict(self), **more}, ensure_ascii=False, separators=(",", ":")).encode()


def load_zones() -> list[Zone]:
    """All zones, sorted by name."""
    text = files(__name__).joinpath(FILE).read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines() if line and not line.startswith("#"))
    return [
        Zone(name, coordinates, tuple(codes.split(",")), tuple(countries.split("; ")), comment)
        for name, coordinates, codes, countries, comment in rows
    ]
