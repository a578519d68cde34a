import importlib
import importlib.util
import json
import subprocess
import sys

import jax
import pytest

from ctssl_jax.errors import ConfigError
from ctssl_jax.hosts import platform
from launch.compile_check import __main__ as compile_check
from launch.compile_check import estimate
from launch.compile_check import hlo as compiled
from launch.compile_check.__main__ import OutOfMemory
from launch.compile_check.estimate import GIB, REPEATED, Cost, Slice
from launch.compile_check.hlo import Collective, Total

CONFIG = "--config=configs/spark.py"
HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None
needs_libtpu = pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu: pip install libtpu")

# From programs that libtpu 0.0.42 made for v5e:4x4, names and layouts kept, the rest left out.
PROGRAM = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%fused_computation.5010 (param_0.15309: f32[16,128]) -> (f32[16,128], f32[256,128], s32[2]) {
  %param_0.15309 = f32[16,128]{1,0:T(8,128)} parameter(0)
  %all-gather.7 = f32[256,128]{1,0:T(8,128)} all-gather(%param_0.15309), channel_id=533, \
replica_groups=mesh['axis_0'=16,'axis_1'=1] {'axis_0'}, dimensions={0}, use_global_device_ids=true
  ROOT %custom-call.13 = (f32[16,128]{1,0:T(8,128)}, f32[256,128]{1,0:T(8,128)S(1)}, \
s32[2]{0:S(4)}) custom-call(%all-gather.7), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.2844 (param_0.1: f32[16,128]) -> f32[256,128] {
  %param_0.1 = f32[16,128]{1,0:T(8,128)} parameter(0)
  %convert.3 = f32[16,128]{1,0:T(8,128)} fusion(%param_0.1), kind=kLoop, calls=%inner, \
backend_config={"window_config":{"estimated_cycles":"7777"}}
  ROOT %all-gather.9 = f32[256,128]{1,0:T(8,128)S(1)} all-gather(%convert.3), channel_id=533, \
replica_groups=mesh['axis_0'=16,'axis_1'=1] {'axis_0'}, dimensions={0}
}

%inner (p: f32[16,128]) -> f32[16,128] {
  ROOT %p = f32[16,128]{1,0} parameter(0)
}

%wide.while_body.4 (wide.param: (s32[], f32[8])) -> (s32[], f32[8]) {
  %wide.param = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %fusion.65 = f32[8]{0:T(128)} fusion(%wide.param), kind=kLoop, calls=%inner, \
backend_config={"window_config":{"estimated_cycles":"100"}}
  %all-reduce.5 = f32[8]{0:T(128)} all-reduce(%fusion.65), channel_id=7, \
replica_groups=[2,8]<=[16], to_apply=%add
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[8]{0:T(128)}) tuple(%wide.param, %all-reduce.5)
}

%wide.while_cond.4 (wide.param.903: (s32[], f32[8])) -> pred[] {
  %constant.8690 = u32[]{:T(128)} constant(28)
  %wide.param.903 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %get-tuple-element.2983 = s32[]{:T(128)} get-tuple-element(%wide.param.903), index=0
  ROOT %compare.124 = pred[]{:T(512)} compare(%get-tuple-element.2983, %constant.8690), direction=LT
}

%data_dependent_cond (p.2: (s32[], f32[8])) -> pred[] {
  ROOT %found.1 = pred[]{:T(512)} parameter(0)
}

%branch_alone (p.3: f32[8]) -> f32[8] {
  ROOT %fusion.1 = f32[8]{0} fusion(%p.3), kind=kLoop, calls=%inner, \
backend_config={"window_config":{"estimated_cycles":"40"}}
}

%branch_with_queue (p.4: f32[8]) -> f32[8] {
  ROOT %fusion.2 = f32[8]{0} fusion(%p.4), kind=kLoop, calls=%inner, \
backend_config={"window_config":{"estimated_cycles":"5000"}}
}

ENTRY %main.992_spmd (param.1: f32[8]) -> f32[8] {
  %param.1 = f32[8]{0:T(128)} parameter(0), sharding={replicated}, metadata={op_name="state.step"}
  %async-collective-start = (f32[16,128]{1,0:T(8,128)}, f32[256,128]{1,0:T(8,128)S(1)}, \
s32[2]{0:S(4)}) fusion(%param.1), kind=kCustom, calls=%fused_computation.5010
  %fusion.2844 = f32[256,128]{1,0:T(8,128)S(1)} fusion(%async-collective-start), kind=kOutput, \
calls=%async_collective_fusion.2844, backend_config={"window_config":{"estimated_cycles":"900000"}}
  %all-reduce.595 = (f32[64]{0:T(128)S(1)}, bf16[3,3,64,64]{3,2,1,0:T(8,128)(2,1)}, \
/*index=2*/f32[]{:T(128)}) all-reduce(%a, %b, /*index=2*/%c), channel_id=1, \
replica_groups=mesh['axis_0'=16,'axis_1'=1] {'axis_0','axis_1'}, to_apply=%add, \
metadata={op_name="jit(step)/jvp(ResNet)/bn1/reduce_sum"}
  %while.60 = (s32[]{:T(128)}, f32[8]{0:T(128)}) while(%tuple.2025), \
condition=%wide.while_cond.4, body=%wide.while_body.4
  %while.61 = (s32[]{:T(128)}, f32[8]{0:T(128)}) while(%tuple.2026), \
condition=%data_dependent_cond, body=%branch_alone
  %while.62 = f32[8]{0:T(128)} while(%tuple.2027), condition=%data_dependent_cond, \
body=%branch_alone, backend_config={"known_trip_count":{"n":"3"}}
  %conditional.1 = f32[8]{0:T(128)} conditional(%p, %q, %q), \
branch_computations={%branch_alone, %branch_with_queue}
  ROOT %copy.1 = f32[8]{0:T(128)} copy(%conditional.1)
}
"""


def read_entry(*lines):
    """The collectives of a program of these instructions."""
    body = "\n".join(f"  {line}" for line in lines)
    return compiled.read(f"ENTRY %main (p: f32[8]) -> f32[8] {{\n{body}\n}}").collectives


def test_cycles_are_those_of_fusions_times_their_loops_and_of_the_heavier_branch():
    work = compiled.read(PROGRAM)
    assert work.cycles == 900_000 + 28 * 100 + 40 + 3 * 40 + 5000
    assert work.unknown_loops == 1


def test_an_asynchronous_collective_counts_once_and_one_in_a_loop_as_often_as_it_runs():
    reduced = 64 * 4 + 9 * 64 * 64 * 2 + 4
    assert compiled.read(PROGRAM).collectives == (
        Collective("all-gather", 256 * 128 * 4, 16, 1, "533"),
        Collective("all-reduce", reduced, 16, 1, "1"),
        Collective("all-reduce", 8 * 4, 8, 28, "7"),
    )
    totals = compiled.read(PROGRAM).by_kind(16)
    assert totals["all-reduce"] == Total(
        29, reduced + 28 * 32, 2 * reduced * 15 / 16 + 28 * 2 * 32 * 7 / 8
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "%x = (f32[8]{0}, f32[128]{0}) all-gather-start(%p), channel_id=2, "
            "replica_groups=[1,16]<=[16], dimensions={0}",
            ("all-gather", 512, 16, 512 * 15 / 16),
        ),
        (
            "%x = bf16[4,8]{1,0} reduce-scatter(%p), channel_id=2, "
            "replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}",
            ("reduce-scatter", 256, 4, 192),
        ),
        (
            "%x = (s8[6]{0}, s8[6]{0}, u32[], u32[]) collective-permute-start(%p), channel_id=2, "
            "source_target_pairs={{0,1},{1,0}}",
            ("collective-permute", 6, 0, 6),
        ),
        (
            "%x = (pred[4]{0}, pred[4]{0}) all-to-all(%p, %q), channel_id=2, "
            "replica_groups=mesh['axis_0'=8,'axis_1'=2] {'axis_1'}",
            ("all-to-all", 8, 2, 4),
        ),
    ],
)
def test_kinds_sizes_and_groups(line, expected):
    (one,) = read_entry(line, "%y = f32[128]{0} all-gather-done(%x)")
    assert (one.kind, one.bytes, one.devices, one.sent(16)) == expected


def test_collectives_without_a_channel_are_different_ones():
    line = "%x = f32[8]{0} all-reduce(%p), replica_groups={{0,1}}, to_apply=%add"
    assert len(read_entry(line, line)) == 2


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="entry"):
        compiled.read("HloModule nothing")


# The estimate


def cost(gib=1.0, **changes):
    """Of a program that needs so many GiB."""
    work = compiled.Work(
        1_500_000,
        (
            Collective("all-reduce", 200_000_000, 16, 1, "1"),
            Collective("all-reduce", 0, 2, 10, "2"),
        ),
    )
    values = {
        "arguments": round(0.4 * GIB),
        "outputs": round(0.3 * GIB),
        "aliased": round(0.3 * GIB),
        "temporaries": round((gib - 0.5) * GIB),
        "code": round(0.1 * GIB),
        "flops": 1e12,
        "bytes_accessed": 1e10,
        "work": work,
        "written_flops": 16e12,
        "plain_flops": 12e12,
        "seconds": 60.0,
    }
    return Cost(**{**values, **changes})


def test_time_is_cycles_and_bytes_and_hops():
    found = estimate.estimate(Slice("v5e:4x4", 16), cost(), batch_size=512)
    assert found.compute == pytest.approx(1e-3)
    assert found.transfer == pytest.approx(2 * 200e6 * 15 / 16 / 200e9)
    assert found.latency == pytest.approx((2 * (2 + 2) + 10 * 2) * 1e-6)
    assert found.step == pytest.approx(found.compute + found.transfer + found.latency)
    assert found.images_per_second == pytest.approx(512 / found.step)
    assert found.mfu == pytest.approx(12e12 / (16 * 197e12 * found.step))


def test_one_chip_waits_for_none():
    alone = cost(work=compiled.Work(1_500_000, (Collective("all-reduce", 100, 0, 1, "1"),)))
    found = estimate.estimate(Slice("v5e:1x1", 1), alone, batch_size=32)
    assert (found.transfer, found.latency) == (0, 0)


def test_table_says_when_chips_repeat_one_anothers_work():
    where = Slice("v5e:4x4", 16)
    assert "repeat" not in estimate.table(estimate.summary(where, cost(), 512))
    printed = estimate.table(estimate.summary(where, cost(flops=4e12), 512))
    assert "4.00 times a chip's share" in printed
    assert "chips repeat one another's work" in printed


# The verdict


def chips_of(count):
    """Stand-ins for the chips of a slice."""
    return [jax.devices()[0]] * count


@pytest.fixture
def slice_of_16(monkeypatch):
    """No libtpu is needed; what the command leaves behind in a process stays out."""
    found = Slice("v5e:4x4", 16), chips_of(16)
    monkeypatch.setattr(compile_check, "find_slice", lambda options: found)
    monkeypatch.setattr(compile_check.importlib.metadata, "version", lambda name: "0")
    monkeypatch.setattr(platform, "quiet_libraries", lambda: None)
    monkeypatch.setattr(compile_check, "set_up", lambda: None)


def compiler(fits):
    """A compiler under which a config fits or not, and what it was asked."""
    asked = []

    def build(config, chips):
        asked.append(config)
        if not fits(config):
            raise OutOfMemory(27.15)
        return cost(9.0)

    return build, asked


def refusal(fits, method="spark", **changes):
    """The line of a config that does not fit, and the configs that were compiled."""
    config = importlib.import_module(f"configs.{method}").get_config("")
    for name, value in changes.items():
        setattr(config, name, value)
    build, asked = compiler(fits)
    with pytest.raises(ConfigError) as caught:
        compile_check.fitting(Slice("v5e:4x4", 16), config, chips_of(16), build)
    return str(caught.value), asked


def test_the_mildest_change_that_was_seen_to_fit_is_named(capsys):
    line, asked = refusal(lambda config: config.encoder.remat_stages >= 3)
    assert "--config.encoder.remat_stages=3 fits (9.00 GiB)" in line
    assert "batch_size=512 on 16 chips of v5e:4x4 needs 27.15 GiB of the 15.75 GiB" in line
    assert [config.encoder.remat_stages for config in asked] == [0, 1, 2, 3]
    assert "trying --config.encoder.remat_stages=3" in capsys.readouterr().out


def test_changes_come_in_order_and_each_alone():
    line, asked = refusal(lambda config: config.batch_size <= 128, shard_state=False)
    assert "--config.batch_size=128 fits" in line
    changes = [(c.encoder.remat_stages, c.accumulate, c.shard_state, c.batch_size) for c in asked]
    assert changes == [
        (0, 1, False, 512),
        (1, 1, False, 512),
        (2, 1, False, 512),
        (3, 1, False, 512),
        (4, 1, False, 512),
        (0, 2, False, 512),
        (0, 4, False, 512),
        (0, 8, False, 512),
        (0, 1, True, 512),
        (0, 1, False, 256),
        (0, 1, False, 128),
    ]


def test_changes_that_the_method_or_the_chips_refuse_are_not_tried():
    _, asked = refusal(lambda config: config.batch_size <= 16, "moco", batch_size=64)
    assert [(c.accumulate, c.batch_size) for c in asked][5:] == [
        (2, 64),
        (4, 64),
        (1, 64),
        (1, 32),
        (1, 16),
    ]


def test_a_program_larger_than_the_chip_is_refused_though_it_compiles():
    config = importlib.import_module("configs.spark").get_config("")
    sizes = {0: 15.76, 1: 15.74}
    with pytest.raises(ConfigError, match=r"15.76 GiB .*remat_stages=1 fits \(15.74 GiB\)"):
        compile_check.fitting(
            Slice("v5e:4x4", 16),
            config,
            chips_of(16),
            lambda config, chips: cost(sizes[config.encoder.remat_stages]),
        )


def test_where_nothing_fits_the_line_says_so():
    line, _ = refusal(lambda config: False)
    assert "no single change fits: take a larger slice" in line


def test_the_compilers_own_words_are_read():
    words = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (17.19G) exceeds available HBM (15.75G)."
    )
    assert compile_check.temporaries_of(words) == 17.19
    assert compile_check.temporaries_of("RESOURCE_EXHAUSTED: for some other reason") == 0


def test_command_prints_a_table_and_writes_the_file(slice_of_16, monkeypatch, tmp_path, capsys):
    build, _ = compiler(lambda config: True)
    monkeypatch.setattr(compile_check.check, "__defaults__", (build,))
    out = tmp_path / "cost.json"
    assert compile_check.command(["c", "--topology=v5e:4x4", CONFIG, f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    for words in ("batch 512 (32 a chip)", "9.00 of 15.75 GiB", "estimated, not measured", "MFU"):
        assert words in printed
    found = json.loads(out.read_text())
    assert found["environment"]["device_count"] == found["chips"] == 16
    assert found["config"]["config"]["batch_size"] == 512
    assert found["collectives"]["all-reduce"]["runs"] == 11
    assert found["estimate"]["images_per_second"] == pytest.approx(512 / found["estimate"]["step"])


def test_command_refuses_in_one_line(slice_of_16, monkeypatch, capsys):
    build, _ = compiler(lambda config: config.accumulate == 2)
    monkeypatch.setattr(compile_check.check, "__defaults__", (build,))
    assert compile_check.command(["c", "--topology=v5e:4x4", CONFIG]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("launch.compile_check: batch_size=512")
    assert printed.endswith("--config.accumulate=2 fits (9.00 GiB)\n")
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([CONFIG], "--topology"),
        (["--topology=v5e:4x4"], "no --config"),
        (["--topology=v5e:4x4", CONFIG, "--chips=-1"], "--chips=-1"),
        (["--topology=v5e:4x4", CONFIG, "--chips=some"], "'some'"),
        (["--topology=v5e:4x4", CONFIG, "--out=nowhere/at/all.json"], "nowhere/at/all.json"),
        (["--topology=v5e:4x4", CONFIG, "--config.nothing=1"], "nothing"),
        (["--topology=v5e:4x4", CONFIG, "--config.batch_size=40"], "multiple of 16"),
        (["--topology=v5e:4x4", CONFIG, "--config.accumulate=64"], "multiple of 1024"),
        (["--topology=v5e:4x4", "--config=configs/ablation.py"], "AblationConfig"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(slice_of_16, capsys, arguments, words):
    assert compile_check.command(["c", *arguments]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.startswith("launch.compile_check: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.parametrize("topology", ["v9:4x4", "v5e", "v5e:", "v5e:4xfour", "4x4"])
def test_an_unknown_topology_is_answered_with_examples(topology):
    with pytest.raises(ConfigError, match=r"give one such as v5e:1x1, v5e:4x4"):
        compile_check.find_slice(compile_check.Options(topology, 0, None))


def test_a_missing_compiler_is_answered_with_how_to_get_it(monkeypatch):
    monkeypatch.setattr(compile_check.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install -e "\.\[tpu\]"'):
        compile_check.find_slice(compile_check.Options("v5e:4x4", 0, None))


# With the TPU's compiler. In processes of their own, as libtpu is set up once.


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "launch.compile_check", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "more", "words"),
    [
        ("v5e:3x5", [], "give one such as"),
        ("v5e:2x2", ["--chips=5"], "--chips=5: v5e:2x2 has 4"),
        ("v5e:1x1", ["--chips=2"], "v5e:1x1 has 1"),
        ("v5e:4x4", ["--config.batch_size=24"], "multiple of 16"),
    ],
)
def test_real_topologies_are_answered_in_one_line(topology, more, words):
    done = run(f"--topology={topology}", CONFIG, *more)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:4x4", "v5e:16x16"])
@pytest.mark.parametrize("name", ["spark", "moco", "swav", "byol"])
def test_full_size_configs_fit_and_no_chip_does_anothers_work(name, topology, tmp_path):
    out = tmp_path / "cost.json"
    done = run(f"--topology={topology}", f"--config=configs/{name}.py", f"--out={out}")
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["hbm_gib"]["needed"] < found["hbm_gib"]["available"]
    # At one slice a chip the update, which all do alike, weighs most: 1.17 (MoCo on 256).
    assert 0.95 < found["times_its_share"] < REPEATED
    assert 0 < found["estimate"]["mfu"] < 1
    assert found["unknown_loops"] == 0
    gradients = max(total["bytes"] for total in found["collectives"].values())
    assert gradients > 40e6  # ResNet-50's, of two bytes each
    if name != "moco":  # which shuffles its keys over the batch
        images = found["config"]["config"]["batch_size"] * 224 * 224 * 2
        gathered = found["collectives"].get("all-gather", {"bytes": 0})["bytes"]
        assert gathered < images / 2  # SwAV gathers its queue, 3.9 MB whatever the batch


@needs_libtpu
@pytest.mark.slow
def test_a_batch_too_large_is_refused_with_a_change_that_fits():
    batch = "--config.batch_size=8192"
    done = run("--topology=v5e:4x4", CONFIG, batch)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    mend = done.stderr.split()[-4]
    assert mend.startswith("--config.")
    assert run("--topology=v5e:4x4", CONFIG, batch, mend).returncode == 0
