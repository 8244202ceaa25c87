"""Label maps of real people, read from files, as templates of virtual patients."""

from collections.abc import Sequence
from pathlib import Path

from mr2ct_lib.files import InputError
from mr2ct_lib.images.folders import read_names
from mr2ct_lib.images.volumes import read_volume
from mr2ct_lib.patients.label_map import LabelMapPatient
from mr2ct_lib.patients.tissues import tissue_of


def read_tissues(path: str | Path) -> dict[int, str]:
    """Read the names of structures, each with a known tissue; value 0 is "background" when absent.

    Raises InputError for a file that `read_names` refuses, a name without a tissue, and a value 0 that is not air.
    """
    names = {0: "background"} | read_names(path)
    for value, name in names.items():
        try:
            tissue = tissue_of(name).name
        except InputError as error:
            raise InputError(f"{path}: label {value}: {error}") from error
        if value == 0 and tissue != "air":
            raise InputError(f"{path}: label 0 is {name!r}; expected what lies around the body, such as 'background'")
    return dict(sorted(names.items()))


def read_atlas(labels: Sequence[Path], names: Path, bodies: Sequence[Path] = ()) -> list[LabelMapPatient]:
    """Return the people of label maps (NIfTI), undeformed.

    Args:
        labels: a label map per person.
        names: the JSON of their structures (see `read_tissues`).
        bodies: body masks, one for each map, or none.

    Raises InputError for a bad map or mask, and for maps that, completed, do not name the same structures.
    """
    structures = read_tissues(names)
    people: list[LabelMapPatient] = []
    for number, path in enumerate(labels):
        body = read_volume(bodies[number], unit="label") if bodies else None
        try:
            person = LabelMapPatient(read_volume(path, unit="label"), structures, body=body, seed=0, deform=False)
        except InputError as error:
            raise error if str(path) in str(error) else InputError(f"{path}: {error}") from error
        if people and person.names != people[0].names:
            raise InputError(
                f"{path}: names skin or fat, which {labels[0]} does not, or the other way round; "
                "expected maps of one kind. Leave one out"
            )
        people.append(person)
    return people
