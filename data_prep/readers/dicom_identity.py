"""By which identifiers a table may name a DICOM file."""

from collections.abc import Mapping

import pydicom
from pydicom.tag import Tag

from data_prep.readers.dicom_file import open_dicom
from data_prep.source import Unusable

_TAGS = {
    "sop": "SOPInstanceUID",
    "series": "SeriesInstanceUID",
    "study": "StudyInstanceUID",
    "accession": "AccessionNumber",
    "patient": "PatientID",
}


def identifiers(path: str) -> Mapping[str, str]:
    """The identifiers of a file by the columns of `label_table`; empty for what is damaged."""
    try:
        with open_dicom(path) as (stream, force):
            tags = pydicom.dcmread(
                stream,
                stop_before_pixels=True,
                specific_tags=[Tag(name) for name in _TAGS.values()],
                force=force,
            )
            found = {column: str(tags.get(name) or "").strip() for column, name in _TAGS.items()}
    except Unusable:
        return {}
    return {column: name for column, name in found.items() if name}
