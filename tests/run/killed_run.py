"""One run of the tiny encoder, for a test that kills it: `python killed_run.py KIND DATA WORKDIR`.

KIND: a name of `tiny.METHODS`, `finetune`, `evaluate` or `sweep`, of the encoder in ENCODER;
`cases`, a fine-tuning of scans; `predict`, by the run in ENCODER of the scans in the folder DATA.
"""

import dataclasses
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "distributed")]

from ctssl_jax import command, main  # noqa: E402

STEPS = 12


def build(kind, data, encoder):
    """The config of the run."""
    import tiny_run

    from ctssl_jax import methods
    from ctssl_jax.ablation import AblationConfig
    from ctssl_jax.config import EvaluateConfig
    from ctssl_jax.data import DataConfig
    from ctssl_jax.methods.cases import Pooling

    ask = {"data": data, "steps": STEPS}
    if kind not in ("evaluate", "sweep", "cases", "predict"):
        return tiny_run.build(ask, kind)
    base = tiny_run.build(ask, "finetune")
    if kind in ("cases", "predict"):
        base.method = methods.Cases(slices=4, pooling=Pooling.ATTENTION, view=base.method.view)
        return dataclasses.replace(base, batch_size=2)
    if kind == "evaluate":
        reading = DataConfig(path=data, canvas=64)
        return EvaluateConfig(encoder_run=encoder, data=reading, size=64, knn_k=(1, 5))
    return AblationConfig(
        base=base,
        base_config="configs/finetune_covid_ct.py:smoke",
        encoders=(encoder,),
        fractions=(0.5, 1.0),
        seeds=(0,),
    )


def work(kind, data):
    """What `command.execute` runs."""

    def run(config, workdir, supervisor):
        from launch.sweep import __main__ as sweep

        config = build(kind, data, os.environ.get("ENCODER", ""))
        if kind == "sweep":
            sweep.run(sweep.Flags().parse(["sweep"])[0], config, workdir, supervisor)
        else:
            main.dispatch(config, workdir, supervisor)

    return run


def predict(source, out, run):
    """The command, which goes on with what it has prepared where it was killed after that."""
    from ctssl_jax.predict.__main__ import main as command_of_predict

    build("predict", source, run)  # the encoder
    ready = Path(out) / "dataset"
    key = Path(source).parent / "key"
    which = [f"--data={ready}"] if ready.exists() else [f"--source={source}", f"--key={key}"]
    return command_of_predict([f"--run={run}", *which, f"--out={out}", "--pictures=1"])


if __name__ == "__main__":
    kind, data, workdir = sys.argv[1:]
    if kind == "predict":
        sys.exit(predict(data, workdir, os.environ["ENCODER"]))
    words = ["tiny", "--config=configs/spark.py:smoke", f"--workdir={workdir}"]
    command.end(command.execute(words, work(kind, data)))
