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


def define_config(default: str) -> Any:
    """Defines `--config`, a file of `configs/` by default, whose fields are flags such as `--config.seed=1`."""
    return config_flags.DEFINE_config_file("config", str(CONFIGS / default), "Config file; its fields are flags too.")


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs an absl main; bad input prints one line `error: ...` and exits with status 2."""

    def guarded(arguments: Sequence[str]) -> None:
        # After absl has put its own handler in place: one readable line for each warning, no news from libraries.
        logging.set_verbosity(logging.WARNING)
        logging.get_absl_handler().setFormatter(None)
        try:
            main(arguments)
        except InputError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            _fail("interrupted; the same command resumes after the last finished stage")

    app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(arguments: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(list(arguments))
    except (flags.Error, AttributeError, KeyError, ValueError, TypeError, OSError) as error:
        _fail(" ".join(str(error).split()))


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(2)
