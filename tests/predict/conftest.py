"""One fine-tuning on scans of the phantom, given as DICOM, for all tests of prediction."""

import csv
import dataclasses
import importlib
from pathlib import Path

import jax
import pytest

from ctssl_jax import finetune
from ctssl_jax.hosts import sharding
from data_prep.folder import make_source
from data_prep.phantom import source as phantom
from data_prep.pipeline.prepare import prepare
from data_prep.pipeline.records import pseudonym

KEY = b"0123456789abcdef"
SHAPE = {"patients": 10, "slices": 6, "size": 32, "seed": 0, "lesion_slices": 2}


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A run on `data`, which was made of `dicom` with the key in `key`."""

    run: Path
    data: Path
    dicom: Path
    key: Path

    def rows(self, split):
        """Rows of predictions.csv by the pseudonym of their case."""
        with (self.run / "predictions.csv").open() as file:
            return {row["case"]: row for row in csv.DictReader(file) if row["split"] == split}

    def folders(self, split):
        """The DICOM folders of a split's patients."""
        patients = {row["patient"] for row in self.rows(split).values()}
        names = {pseudonym(KEY, f"phantom-0-{n}"): n for n in range(SHAPE["patients"])}
        return [self.dicom / f"patient{names[name]:03d}" for name in sorted(patients)]


@pytest.fixture(scope="session")
def tuned(tmp_path_factory):
    root = tmp_path_factory.mktemp("tuned")
    phantom.write_dicom(root / "dicom", **SHAPE)
    labels = str(root / "dicom" / "labels.csv")
    source = make_source(root / "dicom", labels, positive="lesion")
    fractions = {"train": 0.4, "val": 0.3, "test": 0.3}
    prepare(source, root / "data", key=KEY, fractions=fractions)
    (root / "key").write_bytes(KEY)
    config = importlib.import_module("configs.finetune_cases").get_config("smoke")
    config.data.path, config.data.canvas = str(root / "data"), 32
    config.method.view.size, config.method.slices = 32, 4
    config.steps, config.freeze.epochs = 2, 0
    config.validate()
    with pytest.MonkeyPatch.context() as patch:  # predictions are made on four
        patch.setattr(sharding, "all_devices", lambda: jax.devices()[:1])
        finetune.run(config, root / "run")
    return Tuned(root / "run", root / "data", root / "dicom", root / "key")
