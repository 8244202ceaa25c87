"""The data sets that `python -m data_download` knows: where they are, what they stand for, and how they are checked.

Sizes are bytes, checksums "md5:..." or "sha256:..." as their publishers give them (those of the two GitHub sets were
computed from the named commit). None means that no size or checksum is known: the command says so, and checks what it
can. `layout` names the function of `layouts` that arranges the set; a set by hand without one has no layout known here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_download import names
from mr2ct_lib.files import InputError


@dataclass(frozen=True)
class Remote:
    """One file of a data set. `path` is its place in the set's folder: of the file, or of an archive's contents."""

    url: str
    path: str = ""
    size: int | None = None
    checksum: str | None = None
    archive: bool = True

    @property
    def filename(self) -> str:
        """The name at the end of the address."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class DataSet:
    """A data set: its files (none when it comes by hand only), its licence, and what it stands for in the papers."""

    stands_for: str
    licence: str
    page: str
    remotes: tuple[Remote, ...] = ()
    size_hint: str = "unknown"
    layout: str | None = None
    after: str = "put scans as NIfTI into COHORT/source and COHORT/target, then: mr2ct prepare COHORT --out PREPARED"
    by_hand: str | None = None
    names: Mapping[int, str] | None = None  # of a set that is itself label maps: written beside them

    @property
    def size(self) -> int | None:
        """Bytes of all files; None when one of them is unknown."""
        sizes = [remote.size for remote in self.remotes]
        return None if None in sizes or not sizes else sum(size for size in sizes if size is not None)

    @property
    def checks(self) -> str:
        """How what arrives is checked, in words."""
        if not self.remotes:
            return "by hand"
        if all(remote.checksum for remote in self.remotes):
            algorithm = str(self.remotes[0].checksum).split(":")[0]
            return f"{algorithm}, size" if self.size else algorithm
        return "size only" if self.size else "nothing known"


def dataset(name: str) -> DataSet:
    """Return the data set called `name`. Raises InputError for an unknown name, listing the known ones.

    >>> dataset("chaos").size
    890771694
    """
    if name not in DATASETS:
        raise InputError(f"NAME: {name!r}; expected one of {', '.join(DATASETS)}. See `python -m data_download list`")
    return DATASETS[name]


def _zenodo(record: int, filename: str, path: str = "", size: int | None = None, checksum: str | None = None) -> Remote:
    return Remote(f"https://zenodo.org/records/{record}/files/{filename}", path, size, checksum)


def _github(root: str, files: Sequence[tuple[str, int, str]]) -> tuple[Remote, ...]:
    address = "https://raw.githubusercontent.com/" + root
    return tuple(Remote(f"{address}/{path}", path, size, f"md5:{md5}", archive=False) for path, size, md5 in files)


_PELVIC_ANNOTATION = "yuta-hi/pelvic-annonation/d2d7e0dfe069582614bb2d0162c02ed40f6aa210/annotations"
_SYNTHSEG = "BBillot/SynthSeg/66342c1f05e520f3729a6d7ca1042eb7f01b6266/data/training_label_maps"
_IXI = "http://biomedic.doc.ic.ac.uk/brain-development/downloads/IXI/"

_HIP_FILES = (
    ("Pelvic-Ref-001/label.mhd", 366, "bcbf3878d77dd0ad2ce8163a4eff7135"),
    ("Pelvic-Ref-001/label.zraw", 414172, "462b2574628592b10ba432b07a28c1f2"),
    ("Pelvic-Ref-001/mask.mhd", 365, "49608c84b3c7a784b472eb0a767adfb8"),
    ("Pelvic-Ref-001/mask.zraw", 227746, "0e1dfb2df63d10ae5f2e184cb3d628d1"),
    ("Pelvic-Ref-002/label.mhd", 374, "b16f059ffded1b4d7f2193deb038e563"),
    ("Pelvic-Ref-002/label.zraw", 477258, "fcbe85cd8cb3f18e00dfa6d0b125398c"),
    ("Pelvic-Ref-002/mask.mhd", 373, "16757ae585b29fdc4e2083cb19b9850d"),
    ("Pelvic-Ref-002/mask.zraw", 275512, "194ba1bec39ca3f272951275dd393b87"),
    ("Pelvic-Ref-004/label.mhd", 357, "e3d622cc8573c6455b1879faf8f706c3"),
    ("Pelvic-Ref-004/label.zraw", 338390, "8120d5f2a86c2cf41c5a5877b3d00794"),
    ("Pelvic-Ref-004/mask.mhd", 356, "f4c7689c7ffcd6be03f0c47df7385c8a"),
    ("Pelvic-Ref-004/mask.zraw", 254515, "96172d10b6435513a58ae25f80d0698f"),
    ("Pelvic-Ref-005/label.mhd", 370, "fe2b543715f9615b84edb93c58b16d88"),
    ("Pelvic-Ref-005/label.zraw", 348549, "d64a4a1e77840e54912f36368430ecfc"),
    ("Pelvic-Ref-005/mask.mhd", 369, "48734abfea932502a48791c09e6a4a11"),
    ("Pelvic-Ref-005/mask.zraw", 211233, "84b413c0ea3f5e5e4094988ebb6a8b30"),
)
_HEAD_FILES = (
    ("01", 1662924, "2dc7968f995085aa982ef6b8adf3daca"),
    ("02", 1721645, "78c5d0ac37199dc94b36e8a0d63ab858"),
    ("03", 1615475, "3c2a9047bdfddea24be0d13e98146abd"),
    ("04", 1549719, "8a795b798b370016145021450c47fc17"),
    ("05", 1668622, "4b8c1126524295a6ce4295f746d126ba"),
    ("06", 1602738, "33661257198dd60596dd0d27d9091887"),
    ("07", 1556470, "f4c7d52676c95be5451bc4e5cdb2638e"),
    ("08", 1892749, "6bd67a56082e32abcfc4b293e4d85bdc"),
    ("09", 1408671, "7b052475aba824ee5dd0b38e32bec1d5"),
    ("10", 1800385, "7c68cc25906f4db29cf80768e4d2caa4"),
    ("11", 1615867, "f2971f56df08cbe1d1622b71a8cc8575"),
    ("12", 1790263, "c17433af8ef58f9053f2e4e1127cb640"),
    ("13", 1340016, "7d718e2fbc81cd91a7a2020bc5271d36"),
    ("14", 1787586, "bc98d4e988b13dbcdeb09492b63de625"),
    ("15", 1621224, "bf19f20485b5f116959d1d0c33025146"),
    ("16", 1854208, "454083bb7fad594a51b35777ed35d38f"),
    ("17", 1768406, "caa76373181e8263c5d303c838293432"),
    ("18", 1589341, "e261082c55c42fc334296bf8b720a9a8"),
    ("19", 1628009, "9f958490c13eb621c7efe0d99351f2d8"),
    ("20", 1502324, "dfe252c2e998f7203ede1a248b7f5534"),
)

DATASETS: dict[str, DataSet] = {
    "ixi": DataSet(
        "brain PD and T2 of one person each, about 578 (second paper's brain)",
        "CC BY-SA 3.0",
        "https://brain-development.org/ixi-dataset/",
        (
            Remote(_IXI + "IXI-PD.tar", "PD", None, "md5:88ecd9d1fa33cb4a2278183b42ffd749"),
            Remote(_IXI + "IXI-T2.tar", "T2", None, "md5:e3140d78730ecdd32ba92da48c0a9aaa"),
        ),
        size_hint="several GB",
        layout="ixi",
    ),
    "synthrad2023": DataSet(
        "paired MR and CT, 180 pelves and 180 brains (hip MR to CT)",
        "CC BY-NC 4.0",
        "https://zenodo.org/records/7260705",
        (_zenodo(7260705, "Task1.zip", "", 14471900926, "md5:360bc61e2320d5c5a7145454a81c566a"),),
        layout="synthrad2023",
    ),
    "synthrad2025": DataSet(
        "paired MR and CT of abdomen, head-neck, thorax, .mha (abdomen)",
        "CC BY-NC 4.0",
        "https://zenodo.org/records/15373853",
        (_zenodo(15373853, "synthRAD2025_Task1_Train.zip", "", 14846718591),),
        layout="synthrad2025",
    ),
    "chaos": DataSet(
        "unpaired abdominal CT and MR, DICOM; labels: liver, in MR kidneys and spleen, too (abdomen)",
        "CC BY-NC-SA 4.0",
        "https://zenodo.org/records/3431873",
        (
            _zenodo(
                3431873,
                "CHAOS_Train_Sets.zip",
                "",
                890771694,
                "sha256:535f7d3417a0e0f0d9133fb3d962423d2a9cf3f103e4f09a3d8a1daf87d5d2fc",
            ),
        ),
        layout="chaos",
    ),
    "totalsegmentator-ct-small": DataSet(
        "102 CT, labelled (hip CT; label maps)",
        "CC BY 4.0",
        "https://zenodo.org/records/10047263",
        (
            _zenodo(
                10047263,
                "Totalsegmentator_dataset_small_v201.zip",
                "",
                3244617817,
                "md5:6b5524af4b15e6ba06ef2d700c0c73e0",
            ),
        ),
        layout="totalsegmentator",
    ),
    "totalsegmentator-ct": DataSet(
        "1228 CT, labelled (hip CT; label maps)",
        "CC BY 4.0",
        "https://zenodo.org/records/10047292",
        (
            _zenodo(
                10047292,
                "Totalsegmentator_dataset_v201.zip",
                "",
                23581218285,
                "md5:fe250e5718e0a3b5df4c4ea9d58a62fe",
            ),
        ),
        layout="totalsegmentator",
    ),
    "totalsegmentator-mri": DataSet(
        "616 MR, labelled (hip MR; label maps)",
        "CC BY-NC-SA 2.0 or CC BY 4.0: sources disagree, ask before use",
        "https://zenodo.org/records/14710732",
        (
            _zenodo(
                14710732,
                "TotalsegmentatorMRI_dataset_v200.zip",
                "",
                5100514630,
                "md5:54638f4cb883ce3b34225195358c398f",
            ),
        ),
        layout="totalsegmentator",
    ),
    "amos22": DataSet(
        "500 CT and 100 MR of the abdomen, aorta labelled (abdomen; ids from 500 on are MR)",
        "CC BY 4.0 (as reported)",
        "https://zenodo.org/records/7155725",
        (
            _zenodo(
                7155725,
                "amos22.zip",
                "",
                None,
                "sha256:d2fbf2c31abba9824d183f05741ce187b17905b8cca64d1078eabf1ba96775c2",
            ),
        ),
        size_hint="about 24.2 GB",
        layout="amos22",
    ),
    "ctpelvic1k": DataSet(
        "103 pelvic CT with bone masks (hip CT; mask value 2 is the left hip)",
        "not found: read the record's page",
        "https://zenodo.org/records/4588403",
        (
            _zenodo(4588403, "CTPelvic1K_dataset6_data.tar.gz", "data", None, "md5:6b6121e3094cb97bc452db99dd1abf56"),
            _zenodo(
                4588403,
                "CTPelvic1K_dataset6_Anonymized_mask.tar.gz",
                "masks",
                None,
                "md5:7696eb7c4da91f989d6842d7b422efd9",
            ),
        ),
        layout="ctpelvic1k",
    ),
    "hip-labels": DataSet(
        "4 hips, 28 muscles and bones labelled, with body masks (virtual patients of the hip)",
        "MIT",
        "https://github.com/yuta-hi/pelvic-annonation",
        _github(_PELVIC_ANNOTATION, _HIP_FILES),
        after="mr2ct cohort hip --labels {folder}/Pelvic-Ref-001/label.mhd --labels {folder}/Pelvic-Ref-002/label.mhd "
        "--names {folder}/names.json --out cohorts/hip",
        names=names.HIP,
    ),
    "head-labels": DataSet(
        "20 heads, labelled (virtual patients of the head)",
        "Apache-2.0",
        "https://github.com/BBillot/SynthSeg",
        _github(_SYNTHSEG, [(f"training_seg_{number}.nii.gz", size, md5) for number, size, md5 in _HEAD_FILES]),
        after="mr2ct cohort head --labels {folder}/training_seg_01.nii.gz --names {folder}/names.json "
        "--out cohorts/head",
        names=names.HEAD,
    ),
    "pelvic-reference": DataSet(
        "58 pelvic CT, DICOM: the scans under hip-labels",
        "see the collection's page",
        "https://doi.org/10.7937/TCIA.2019.woskq5oo",
        by_hand="choose the series on the page and download them with the NBIA Data Retriever",
        layout="pelvic-reference",
    ),
    "gold-atlas": DataSet(
        "paired MR and CT of the male pelvis",
        "on request",
        "https://zenodo.org/records/583096",
        by_hand="ask for access on the record's page, and unpack each patient's zip into one folder",
        layout="gold-atlas",
    ),
    "csiro-hipmri": DataSet(
        "MR of the male hip region, labelled",
        "see the page",
        "https://doi.org/10.25919/45t8-p065",
        by_hand="download it through the CSIRO data portal",
        layout="csiro-hipmri",
    ),
    "lund-probe": DataSet(
        "pelvic MR with a CT that is itself synthetic: no truth for MR to CT",
        "on request",
        "search for LUND-PROBE",
        by_hand="ask its authors for access",
        layout="lund-probe",
    ),
    "mm-whs": DataSet(
        "CT and MR of the heart, unpaired",
        "on request",
        "search for MM-WHS",
        by_hand="register on the challenge's page",
        layout="mm-whs",
    ),
}
