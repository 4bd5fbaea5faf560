"""What all launchers share: the config flag, and bad input ending in one line."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from otbr_jax.errors import InputError

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"


def define_config(default: str) -> Callable[[], dict[str, Any]]:
    """Defines `--config`, a file of `configs/` by default, whose fields are flags such as `--config.seed=1`.

    Returns a function that gives the settings as a nested dictionary once flags are parsed.
    """
    try:
        holder = config_flags.DEFINE_config_file(
            "config", str(CONFIGS / default), "Config file; its fields are flags too."
        )
    except (AttributeError, KeyError) as error:  # ml_collections looks fields up here already; KeyError within groups
        missing = error.args[0].args[0] if isinstance(error.args[0], KeyError) else error.args[0]
        fail(f"unknown config field {_one_line(missing)}")

    def settings() -> dict[str, Any]:
        try:
            return holder.value.to_dict()
        except Exception as error:  # whatever a user's file does
            raise InputError(
                f"--config: expected a file whose get_config() returns a ConfigDict: {_last_line(error)}"
            ) from None

    return settings


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs an absl main; bad input prints one line `error: ...` and exits with status 2."""

    def guarded(arguments: Sequence[str]) -> None:
        # After absl has put its own handler in place: one readable line for each warning, no news from libraries.
        logging.set_verbosity(logging.WARNING)
        logging.get_absl_logger().setLevel("ERROR")  # Orbax's remarks; this project's own loggers are not absl's
        logging.get_absl_handler().setFormatter(None)
        try:
            main(arguments)
        except InputError as error:
            fail(_one_line(str(error)))
        except KeyboardInterrupt:
            fail("interrupted; the same command goes on from what is finished", status=130)

    app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(arguments: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(list(arguments))
    except flags.Error as error:
        # A config file's own error comes wrapped in absl's.
        before, ours, message = _one_line(str(error)).partition(f"{InputError.__module__}.{InputError.__name__}: ")
        fail(message if ours else before)
    except Exception as error:  # ml_collections runs the user's config file here
        fail(f"--config: {_one_line(str(error))}")
    if len(rest) > 1:
        fail(f"expected flags only, found {rest[1]!r}")
    return rest


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()


def _one_line(message: str) -> str:
    """A library's message without line breaks, and without the traceback that it may quote."""
    before, quoted, traceback = message.partition("Traceback (most recent call last):")
    if quoted:
        message = before + traceback.strip().splitlines()[-1]
    return " ".join(message.split())


def fail(message: str, *, status: int = 2) -> NoReturn:
    """Prints the line `error: MESSAGE` to standard error and exits with that status."""
    # TensorStore may still be reading a checkpoint that was refused, and complain about it while Python shuts down.
    sys.unraisablehook = lambda _: None
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(status)
