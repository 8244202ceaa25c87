"""Label maps of real people, read from files, as templates of virtual patients."""

from collections.abc import Sequence
from pathlib import Path

from mr2ct_lib.files import InputError, read_json
from mr2ct_lib.images.volumes import read_volume
from mr2ct_lib.patients.label_map import LabelMapPatient
from mr2ct_lib.patients.tissues import tissue_of


def read_names(path: str | Path) -> dict[int, str]:
    """Read a JSON object of label values and names; value 0 is "background" when absent.

    Raises InputError when it is not such an object or a name has no tissue.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise InputError(f'{path}: holds no names; expected a JSON object such as {{"1": "femur"}}. Write one')
    names = {}
    for key, name in content.items():
        if not str(key).strip().isdigit() or not isinstance(name, str):
            raise InputError(f'{path}: entry {key!r}: {name!r}; expected a label value and a name, as "1": "femur"')
        names[int(key)] = name
    names.setdefault(0, "background")
    for value, name in names.items():
        try:
            tissue_of(name)
        except InputError as error:
            raise InputError(f"{path}: label {value}: {error}") from error
    return dict(sorted(names.items()))


def read_atlas(labels: Sequence[Path], names: Path, bodies: Sequence[Path] = ()) -> list[LabelMapPatient]:
    """Return the people of label maps (NIfTI), undeformed.

    Args:
        labels: a label map per person.
        names: the JSON of their structures (see `read_names`).
        bodies: body masks, one for each map, or none.

    Raises InputError for a bad map or mask, and for maps that, completed, do not name the same structures.
    """
    structures = read_names(names)
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
