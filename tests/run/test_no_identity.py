"""No name of a machine, a user or a place in any byte that a run, a report or a sweep writes.

Paths of hospitals name patients, and run folders are given away. Planted marks are nowhere found.
"""

import dataclasses
import os
import platform
import shutil
import socket
import stat
import zipfile

import pytest

from ctssl_jax import evaluate, finetune, pretrain
from ctssl_jax.ablation import AblationConfig
from ctssl_jax.errors import ConfigError
from ctssl_jax.report import write_report
from launch.sweep import __main__ as sweep

pytestmark = pytest.mark.usefixtures("tiny_on_one_device")
HOST, USER, PLACE = "canaryhost", "canaryuser", "Canary^Yellowbird_MRN7741903"
MARKS = (HOST, USER, PLACE, "Yellowbird", "MRN7741903")


@pytest.fixture(scope="module")
def written(use_tiny, configs, phantom_path, tmp_path_factory):
    """All that runs of every kind, a sweep and a report write, on a machine and in places so named.

    With a umask that lets everybody read and write.
    """
    place = tmp_path_factory.mktemp("identity") / PLACE
    data = shutil.copytree(phantom_path, place / "data")
    found = os.uname()
    named = os.uname_result((found.sysname, HOST, *found[2:]))
    with pytest.MonkeyPatch.context() as patch:
        use_tiny(patch)
        patch.setattr(socket, "gethostname", lambda: HOST)
        patch.setattr(platform, "node", lambda: HOST)
        patch.setattr(os, "uname", lambda: named)
        for name in ("USER", "LOGNAME", "USERNAME"):
            patch.setenv(name, USER)
        before = os.umask(0)
        try:
            return _write_all(place, data, configs)
        finally:
            os.umask(before)


def _write_all(place, data, configs):
    def of(name, **changes):
        own = dataclasses.replace(configs[name].data, path=str(data))
        return dataclasses.replace(configs[name], data=own, **changes)

    out = place / "out"
    encoder = {"encoder_run": str(out / "pretraining")}
    pretrain.run(of("pretraining", picture_every=4), out / "pretraining")
    finetune.run(of("finetuning", **encoder), out / "finetuning")
    evaluate.run(of("evaluation", **encoder), out / "evaluation")
    grid = AblationConfig(
        base=of("finetuning"),
        base_config="configs/finetune_covid_ct.py:smoke",
        encoders=(encoder["encoder_run"],),
        scratch=False,
        fractions=(1.0,),
        seeds=(0,),
    )
    own = sweep.Flags().parse(["sweep"])[0]
    sweep.run(own, grid, out / "grid", sweep.Supervisor())
    write_report([out], out / "report", out / "published")
    with pytest.raises(ConfigError):
        finetune.run(of("finetuning"), out / "evaluation")
    return out


def everything(folder):
    """Names and bytes of all files; what is packed also unpacked."""
    for path in sorted(folder.rglob("*")):
        yield path, str(path.relative_to(folder)).encode()
        if not path.is_file():
            continue
        yield path, path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed:
                for name in packed.namelist():
                    yield path, packed.read(name)


def test_no_mark_is_in_any_byte(written):
    found = [
        (str(path.relative_to(written)), mark)
        for path, content in everything(written)
        for mark in MARKS
        if mark.encode() in content
    ]
    assert not found
    kinds = {path.name.split(".")[0] for path in written.rglob("*")}
    assert kinds >= {"events", "log", "predictions", "embeddings", "results", "report", "best"}
    assert kinds >= {"commit_success", "figures", "seen", "published"}


def test_the_search_would_find_one(written, tmp_path):
    copy = shutil.copytree(written / "finetuning", tmp_path / "copy")
    with (copy / "log.txt").open("a") as file:
        file.write(f"{HOST}\n")
    assert any(HOST.encode() in content for _, content in everything(copy))


def test_only_the_owner_may_look_into_what_was_made(written):
    """Pictures, embeddings and pseudonyms are protected as their source is, whatever the umask."""
    for name in ("pretraining", "finetuning", "evaluation", "grid", "report"):
        assert stat.S_IMODE((written / name).stat().st_mode) == 0o700, name


def test_a_folder_that_is_there_keeps_its_mode(configs, tmp_path):
    (tmp_path / "run").mkdir(mode=0o755)
    pretrain.run(configs["pretraining"], tmp_path / "run")
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o755
