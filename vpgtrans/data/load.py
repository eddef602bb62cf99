"""Placeholder until the formats are here: the mix of image-text sets."""

from collections.abc import Iterable
from dataclasses import dataclass

from vpgtrans.data.records import Record


@dataclass
class Mix:
    """Several image-text sets with their shares."""

    sets: list[list[Record]]
    weights: list[float]

    @classmethod
    def of(cls, records: Iterable[Record]) -> "Mix":
        """Wrap one set."""
        return cls([list(records)], [1.0])

    @property
    def records(self) -> list[Record]:
        """Every record of every set."""
        return [record for records in self.sets for record in records]
