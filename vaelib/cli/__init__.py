"""``vaelib train | evaluate | reconstruct | sample | encode | export | explore | benchmark | demo | info``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

import typer

from vaelib._checks import VaelibError
from vaelib.cli import evaluate, images, tour, train, use

__all__ = ["app", "main"]

app = typer.Typer(
    help="Variational autoencoders: images in, a measured VAE, a verified ONNX model out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    train.train,
    evaluate.evaluate,
    images.reconstruct,
    images.sample,
    images.encode,
    use.export,
    tour.explore,
    use.benchmark,
    tour.demo,
    use.info,
):
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0; 1 after an error, told in one line; 2 for wrong usage; 130 if interrupted.
    """
    formatted = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # without the line of code
    try:
        app(args=arguments, prog_name="vaelib")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except (VaelibError, ValueError, TypeError, OSError) as error:
        print(f"vaelib: {error}", file=sys.stderr)  # noqa: T201
        return 1
    finally:
        warnings.formatwarning = formatted
    return 0
