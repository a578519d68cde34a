"""What is installed: the wheel's files and the command `ctssl`, tried away from the checkout."""

import importlib.util
import os
import runpy
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from ctssl_jax import __main__ as ctssl
from ctssl_jax import __version__, flags, presets, verbs

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    build = pytest.importorskip("hatchling.build")
    folder = tmp_path_factory.mktemp("wheel")
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        return folder / build.build_wheel(str(folder))
    finally:
        os.chdir(before)


def elsewhere(site, folder, *words):
    """A command where only the unpacked wheel is of this project."""
    paths = [str(site), *(path for path in sys.path if path and "site-packages" in path)]
    script = (
        "import runpy, sys\n"
        # An editable install would find the checkout, by a hook or by a path of its own.
        "sys.meta_path = [hook for hook in sys.meta_path if 'editable' not in repr(hook)]\n"
        f"sys.path = {paths!r} + [path for path in sys.path if path != {str(ROOT)!r}]\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-I", "-c", script, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_the_wheel_holds_the_packages_and_takes_no_others_name(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.partition("/")[0] for name in held}
    assert tops == {"ctssl_jax", "data_prep", "launch", f"ctssl_jax-{__version__}.dist-info"}
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if kept.returncode:
        pytest.skip("no clone")
    packages = ("ctssl_jax/", "data_prep/", "launch/")
    files = {name for name in kept.stdout.splitlines() if (ROOT / name).exists()}
    assert {name for name in files if name.startswith(packages)} <= held
    configs = {f"ctssl_jax/{name}" for name in files if name.startswith("configs/")}
    assert len(configs) > 8
    assert configs <= held


def test_a_wheel_away_from_the_checkout_knows_its_configs(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    done = elsewhere(tmp_path / "site", tmp_path, "ctssl_jax", "sweep", "--help")
    assert done.returncode == 0, done.stderr
    assert "--config=ablation" in done.stdout
    # The data are missing, not the config nor what it refers to.
    done = elsewhere(
        *(tmp_path / "site", tmp_path, "ctssl_jax", "sweep", "--config=ablation:cases"),
        "--workdir=grid",
    )
    assert done.returncode == 3, done.stderr
    assert "data/task" in done.stderr
    (tmp_path / "site" / "looks.py").write_text(
        "import importlib.util, ctssl_jax\n"
        "assert 'site/ctssl_jax' in ctssl_jax.__file__, ctssl_jax.__file__\n"
        "assert importlib.util.find_spec('configs') is None\n"
    )
    assert elsewhere(tmp_path / "site", tmp_path, "looks").returncode == 0


def test_the_command_has_one_entry(capsys, monkeypatch):
    assert PROJECT["scripts"] == {"ctssl": "ctssl_jax.__main__:main"}
    monkeypatch.setattr(sys, "argv", ["ctssl"])
    assert ctssl.main() == 0
    told = capsys.readouterr().out
    for verb, known in ctssl.VERBS.items():
        assert f"  {verb} " in told
        assert known.title in told


@pytest.mark.parametrize("verb", ctssl.VERBS)
def test_a_verb_hands_over_to_its_module(verb, monkeypatch):
    handed = []
    monkeypatch.setattr(runpy, "run_module", lambda *names, **how: handed.append((*names, how)))
    monkeypatch.setattr(sys, "argv", ["ctssl", verb, "--flag=1"])
    assert ctssl.main() == 0
    module, _, words = ctssl.VERBS[verb]
    assert handed == [(module, {"run_name": "__main__", "alter_sys": True})]
    assert sys.argv == ["ctssl", *words, "--flag=1"]
    spec = importlib.util.find_spec(module)
    if spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{module}.__main__")
    assert '__name__ == "__main__"' in Path(spec.origin).read_text()


def test_an_unknown_verb_names_the_closest(capsys):
    assert verbs.main("ctssl", "", ctssl.VERBS, ["ctssl", "trian"]) == 2
    assert capsys.readouterr().err == "ctssl: no command trian: did you mean train?\n"
    assert verbs.main("ctssl", "", ctssl.VERBS, ["ctssl", "zzz"]) == 2
    assert "there are prep, train," in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["sweep", "--help"], ["prep", "folder", "--help"]])
def test_output_that_nobody_reads_ends_without_a_complaint(words):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "ctssl_jax", *words],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert done.stderr == ""
    assert done.returncode in (0, 141)  # argparse leaves alone what its help cannot write


@pytest.mark.parametrize("package", ["data_prep", "launch"])
def test_a_package_lists_its_commands(package):
    found = verbs.commands_in(package, ROOT / package)
    assert {"data_prep": "dicom", "launch": "sweep"}[package] in found
    assert {"source", "measuring", "__main__"}.isdisjoint(found)
    assert all(verb.title for verb in found.values())
    done = subprocess.run(
        [sys.executable, "-m", package], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert [line.split()[0] for line in done.stdout.splitlines()[2:]] == list(found)


@pytest.mark.parametrize(
    ("words", "stem"),
    [
        (["--config=spark:smoke"], "spark-smoke"),
        (["--config", "spark"], "spark"),
        (["--config=configs/spark.py:smoke"], "spark-smoke"),
    ],
)
def test_a_config_is_found_by_name_and_by_file(words, stem, monkeypatch):
    monkeypatch.chdir(ROOT)
    parsed = flags.parse(["main", *words, "--config.seed=7"])
    assert (parsed.config.seed, parsed.workdir.name) == (7, stem)


def test_a_config_by_name_is_found_from_anywhere(tmp_path, monkeypatch):
    here = flags.parse(["main", "--config=spark:demo"]).config
    monkeypatch.chdir(tmp_path)
    assert flags.parse(["main", "--config=spark:demo"]).config == here
    assert presets.load("spark", "demo") == here


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("sprk", "did you mean spark?"),
        ("zzz", "there are ablation, byol,"),
        ("configs/spark.py", "--config=spark names the shipped one"),
        ("configs/mine.py", "run from the project's folder, or give its path"),
    ],
)
def test_a_config_that_is_none_says_what_to_do(given, told, tmp_path, monkeypatch, capsys):
    from ctssl_jax import main

    monkeypatch.chdir(tmp_path)
    assert main.main(["main", f"--config={given}"]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_a_wheelhouse_is_enough_to_install_from(tmp_path):
    """Makes a wheelhouse with pip as it is set up here, then installs from it without an index."""
    house, venv = tmp_path / "wheelhouse", tmp_path / "venv"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wanted = f"{ROOT}[prep,report]"
    pins = ["-c", str(ROOT / "requirements.txt")]
    making = [*pip, "wheel", "-q", "-w", house, *pins, wanted]
    made = subprocess.run(making, capture_output=True, timeout=1200)
    if made.returncode:
        pytest.skip("the wheelhouse cannot be made here")
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    run = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 1200}
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
    run["env"] = environment | {"PIP_CONFIG_FILE": os.devnull}
    installing = ["-m", "pip", "install", "-q", "--no-index", f"--find-links={house}"]
    done = subprocess.run([venv / "bin/python", *installing, "ctssl_jax[prep,report]"], **run)
    assert done.returncode == 0, done.stderr
    for words in (["train", "--config=spark:smoke"], ["report", "runs", "--out=page"]):
        done = subprocess.run([venv / "bin/ctssl", *words], **run)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "page/report.html").exists()
