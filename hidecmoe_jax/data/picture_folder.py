"""Folder of pictures: file names of records are looked up in it, and in its `images/`.

A name that leads out of the folder is refused. For a missing file the folder is searched for the same name in other
capitals, another Unicode form or with another extension; such a file is named, never taken by itself.
"""

from __future__ import annotations

import difflib
import os
import stat
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

INNER = "images"


@dataclass(frozen=True)
class PictureFolder:
    """A folder that records take their pictures from.

    Attributes:
      home: the folder, resolved; image paths are relative to it and must not leave it.
    """

    home: Path
    # Listings of folders that lack a file: a folder of many missing pictures is listed once.
    _listings: dict[Path, tuple[str, ...]] = field(default_factory=dict, compare=False, repr=False)

    def locate(self, name: str) -> tuple[str, str | None]:
        """Returns the resolved path of a regular file and None, or an empty text and the problem."""
        if "://" in name or name.startswith("data:"):
            return "", f"image {name[:80]!r} is an address; pictures are read from files only, download it first"
        has_backslash = "\\" in name
        if Path(name).is_absolute() or has_backslash:
            return "", f"image {name!r} must be a path relative to {self.home}, with forward slashes"
        # The name as written has precedence over the one in `images/`.
        for place in (self.home / name, self.home / INNER / name):
            try:
                # Resolved first, so that neither `..` nor a symbolic link can lead outside.
                path = place.resolve()
                is_inside = path.is_relative_to(self.home)
                status = os.stat(path) if is_inside else None
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (OSError, RuntimeError) as error:
                return "", f"image {name!r} cannot be read: {error}"
            if status is None:
                return "", f"image {name!r} leads out of {self.home} (to {path})"
            if not stat.S_ISREG(status.st_mode):
                return "", f"image {name!r} is not a regular file"
            return str(path), None
        return "", f"image {name!r} does not exist under {self.home}{self._hint(name)}"

    def _hint(self, name: str) -> str:
        """The end of the message about a missing file: the name that may be meant, or nothing."""
        parts = PurePosixPath(name).parts
        # As written, then by its last part: a folder's own name or a parent of it may be written into the name.
        for tail in (parts, parts[-1:]):
            for folder in (self.home, self.home / INNER):
                near = self._near(folder, tail)
                if near is not None:
                    return f"; did you mean {near.relative_to(self.home).as_posix()!r}?"
        folder = self.home.joinpath(*parts[:-1])
        return "" if folder.is_dir() else f"; there is no folder {folder}"

    def _near(self, folder: Path, parts: tuple[str, ...]) -> Path | None:
        """The path below `folder` whose parts are nearly `parts`, or None."""
        path = folder
        for position, part in enumerate(parts):
            is_file = position == len(parts) - 1
            match = _match(part, self._listing(path), is_file=is_file)
            if match is None:
                return None
            path = path / match
        return path if path.is_file() else None

    def _listing(self, folder: Path) -> tuple[str, ...]:
        """Sorted names in a folder; none where it cannot be listed."""
        if folder not in self._listings:
            try:
                names = sorted(os.listdir(folder))
            except OSError:
                names = []
            self._listings[folder] = tuple(names)
        return self._listings[folder]


def place_of(name: str, inner: str) -> str:
    """Returns where the picture of a name lies in a task folder that keeps its pictures in `inner`."""
    return f"{inner}/{name}" if inner and not name.startswith(f"{inner}/") else name


def near_file(path: Path) -> Path | None:
    """The file that is meant by a path that does not exist, by its name; None where no name is near."""
    folder = path.parent
    return PictureFolder(folder)._near(folder, (path.name,))


def _match(part: str, names: tuple[str, ...], *, is_file: bool) -> str | None:
    """The name that is nearest to one part of a path: equal, equal but for its form, its extension, a letter."""
    if part in names:
        return part
    wanted = _folded(part)
    for name in names:
        if _folded(name) == wanted:
            return name
    if not is_file:
        return None
    stem = _folded(PurePosixPath(part).stem)
    for name in names:
        if _folded(PurePosixPath(name).stem) == stem:
            return name
    # Numbered pictures differ in a digit alone and are all near each other.
    if any(character.isdigit() for character in part):
        return None
    close = difflib.get_close_matches(part, names, n=1, cutoff=0.85)
    return close[0] if close else None


def _folded(name: str) -> str:
    """A name without what differs between systems: capitals, composed letters, wide forms, outer blanks."""
    return unicodedata.normalize("NFKC", name).casefold().strip()
