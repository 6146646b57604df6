"""What the explanations of both networks have in common: numbers, sentences and files, and how they are stored."""

from dataclasses import dataclass
from typing import Any

from tasks.workspace import Workspace


@dataclass(frozen=True, eq=False)
class Explanation:
    """Numbers for programs, what they mean (a sentence each), and the files with everything, by name."""

    numbers: dict[str, Any]
    words: list[str]
    files: dict[str, bytes]

    def write(self, place: Workspace, folder: str = "") -> list[str]:
        """Write the files into a folder of the place; gives where they are."""
        names = {f"{folder}/{name}" if folder else name: content for name, content in self.files.items()}
        for name, content in names.items():
            place.write_bytes(name, content)
        return [place.path(name) for name in names]
