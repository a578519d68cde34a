"""The benchmark of a new device: in what order, what is kept, and what its page says."""

import json

import jax
import pytest
from test_benchmark import config_of

from launch.benchmark import __main__ as benchmark
from launch.benchmark import device, parity, peak


def test_the_most_important_comes_first_and_each_part_is_one_of_the_benchmark():
    names = [each.name for each in device.measurements(small=False, data="")]
    assert names[0] == "peak"
    assert names.index("parity spark") < names.index("step spark") < names.index("breakdown moco")
    assert len(set(names)) == len(names)
    assert "reading" not in names
    for small in (True, False):
        for each in device.measurements(small, "data/scans"):
            arguments = ["launch.benchmark", *each.words]
            options, config = benchmark.parse(arguments)
            assert options.part == each.words[0]
            config.method.validate_run(config.microbatch, 250_000)


def test_what_is_done_is_kept_and_what_fails_is_told(tmp_path, monkeypatch, capsys):
    good = device.Measurement("peak", ("peak", "--config=configs/spark.py:smoke"), 120)
    bad = device.Measurement("step spark", ("augment", "--config=configs/nothing.py"), 120)
    slow = device.Measurement("step moco", ("augment", "--config=configs/moco.py:smoke"), 0.1)
    monkeypatch.setattr(device, "measurements", lambda small, data: iter([bad, slow, good]))
    arguments = ["launch.benchmark", "gpu", f"--workdir={tmp_path}", "--small"]
    assert benchmark.command(arguments) == 0
    said = capsys.readouterr().out
    assert "exit code 2: launch.benchmark: " in said
    assert "not done within 0 s" in said
    assert "gpu.md: 2 failed, 0 left to do" in said
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(found) == ["peak"]
    assert found["peak"]["found"]["tflops_float32"] > 0
    before = (tmp_path / "peak.json").stat().st_mtime_ns
    assert benchmark.command([*arguments, "--minutes=0.01"]) == 0
    assert "no time was left for step moco" in capsys.readouterr().out
    assert (tmp_path / "peak.json").stat().st_mtime_ns == before
    assert benchmark.command([*arguments, "--minutes=0"]) == 2


def test_the_page_has_the_rate_of_each_step_beside_the_best():
    """250 TFLOP in 500 ms are 500 TFLOP/s, half of what the device does at best."""
    environment = {"device": "H", "device_count": 1, "jax": "0", "commit": "c", "host": "ward-7"}
    row = {"ms_per_batch": 500.0, "images_per_second": 512.0, "flops": 250e12, "share_of_step": 1}
    views = {**row, "share_of_step": 0.125}
    step = {
        "environment": environment,
        "rows": {"training step": row, "augmentation": views},
        "config": {"config": {"precision": "bfloat16"}},
        "peak_bytes": 3 * 2**30,
    }
    best = {"environment": environment, "title": "t", "table": "| at best |"}
    page = device.page({"peak": {**best, "found": {"tflops_bfloat16": 1000.0}}, "step moco": step})
    assert "| moco | 500.0 | 512 | 12.5% | 250.00 | 50.0% | 3.0 |" in page
    assert page.startswith("device H, device_count 1, jax 0, commit c.")
    assert "ward-7" not in page
    assert "| at best |" in page
    assert "| moco | 500.0 | 512 | 12.5% | 250.00 | – | 3.0 |" in device.page({"step moco": step})


@pytest.mark.usefixtures("tiny_encoder")
def test_the_device_is_set_beside_the_cpu():
    """On a CPU both are one device: float32 is equal to itself, bfloat16 is not."""
    rows = parity.measure(config_of("simclr"))
    assert rows["float32"]["loss"] == rows["float32"]["grad_norm"] == 0
    assert 0 < rows["bfloat16"]["loss"] < 0.05
    assert "| float32 |" in parity.table(rows)


def test_the_best_is_measured():
    assert jax.default_backend() == "cpu"
    found = peak.measure()
    assert set(found) == {"tflops_bfloat16", "tflops_float32", "copied_gb_per_second"}
    assert min(found.values()) > 0
