"""The command: weights out of a run, and weights of others in.

    python -m ctssl_jax.interop export --run=RUN --layout=timm --out=FOLDER/encoder.safetensors
    python -m ctssl_jax.interop convert --source=FILE.pth --out=FILE.safetensors
    python -m ctssl_jax.interop import --source=FILE.safetensors --layout=spark --out=RUN

Exit codes: 0 done; 2 usage; 3 a run or file that is missing, damaged or not what its layout says;
5 something cannot be written.
"""

if __name__ == "__main__":
    from ctssl_jax.hosts import signals

    signals.end_at_signals()

import argparse
import os
import sys
from pathlib import Path

from ctssl_jax import command
from ctssl_jax.hosts import platform


def export_command(flags: argparse.Namespace) -> str:
    """`export`; returns the line that tells of it, as the others do."""
    from ctssl_jax.interop.export import Layout, export

    done = export(flags.run, Layout(flags.layout), flags.out, flags.licence)
    return f"{flags.out.parent}: {', '.join(done.files)} ({done.tensors} tensors)"


def convert_command(flags: argparse.Namespace) -> str:
    """`convert`."""
    from ctssl_jax.interop.pickles import convert

    done = convert(flags.source, flags.out, flags.limit_gib)
    left = f"; left out, no tensors: {', '.join(done.left)}" if done.left else ""
    return f"{flags.out}: {done.tensors} tensors{left}"


def import_command(flags: argparse.Namespace) -> str:
    """`import`."""
    from ctssl_jax.interop.foreign import import_encoder

    done = import_encoder(flags.source, flags.layout, flags.out, flags.name)
    parts = " and SparK's decoder" * ("head" in done.start.params)
    flag = f"--config.encoder_run={flags.out} --config.encoder.depth={done.depth}"
    return (
        f"{flags.out}: ResNet-{done.depth} of {done.channels} channels{parts}; {done.left} other "
        f"tensors of the file were left. Use it by {flag} "
        f"--config.intensity.channels={done.channels}"
    )


def parser() -> argparse.ArgumentParser:
    """Of the command's flags."""
    from ctssl_jax.interop.export import Layout
    from ctssl_jax.interop.foreign import LAYOUTS

    own = command.Parser(prog="python -m ctssl_jax.interop", description=__doc__)
    commands = own.add_subparsers(required=True, metavar="COMMAND")
    out = commands.add_parser("export", help="a run's weights, for PyTorch", allow_abbrev=False)
    out.add_argument("--run", type=Path, required=True, help="a run folder")
    out.add_argument("--layout", choices=[layout.value for layout in Layout], required=True)
    out.add_argument("--out", type=Path, required=True, help="FOLDER/NAME.safetensors")
    out.add_argument("--licence", default="", help="of the weights, for the model card")
    out.set_defaults(work=export_command)
    convert = commands.add_parser(
        "convert", help="a checkpoint of PyTorch to safetensors", allow_abbrev=False
    )
    convert.add_argument("--source", type=Path, required=True, help="a .pth or .ckpt file")
    convert.add_argument("--out", type=Path, required=True, help="NAME.safetensors")
    convert.add_argument("--limit_gib", type=float, default=4.0, help="refuse what is larger")
    convert.set_defaults(work=convert_command)
    into = commands.add_parser("import", help="an encoder of others", allow_abbrev=False)
    into.add_argument("--source", type=Path, required=True, help="a .safetensors file")
    into.add_argument("--layout", choices=list(LAYOUTS), required=True)
    into.add_argument("--out", type=Path, required=True, help="the run folder to make")
    into.add_argument("--name", default="", help="of the arm in results and reports")
    into.set_defaults(work=import_command)
    return own


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (see `ctssl_jax.errors`)."""
    platform.set_cpu_flags()
    platform.quiet_libraries()

    def work() -> None:
        flags = parser().parse_args(arguments)
        print(flags.work(flags))

    return command.run("ctssl_jax.interop", work)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.exit(main())
