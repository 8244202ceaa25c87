"""Where the recorded results of this checkout are, and its recorded translators by name."""

from pathlib import Path

import mr2ct_lib
from mr2ct_lib.files import InputError

RESULTS = Path(mr2ct_lib.__file__).parents[1] / "results"


def find_translator(name: str | Path) -> Path:
    """Return the folder of a translator: `name` itself if it holds one, else the recorded translator of that name.

    Raises InputError, with the names that there are, for anything else.
    """
    folder, shelf = Path(name), RESULTS / "translators"
    if any((place / "translator.json").is_file() for place in (folder, folder / "translator")):
        return folder
    if str(name) == folder.name and (shelf / folder / "translator.json").is_file():
        return shelf / folder
    names = sorted(path.parent.name for path in shelf.glob("*/translator.json"))
    raise InputError(
        f"{name}: is no folder of a translator and no recorded one; expected the translator/ of a finished run, or one "
        f"of the recorded ones: {', '.join(names) or 'there are none here'}"
    )
