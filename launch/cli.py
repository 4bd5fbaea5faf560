"""What all launchers share: the config flag, help, and bad input ending in one line."""

from __future__ import annotations

import dataclasses
import errno
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Generic, NoReturn, TypeVar

from absl import app, flags, logging
from ml_collections import config_flags

from launch import compiled, helping
from launch.hosts import Hosts, end, joined, lost
from otbr_jax.errors import InputError
from otbr_jax.runs.numerics import as_usual
from otbr_jax.settings import all_names, describe, from_dict

T = TypeVar("T")
CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = CHECKOUT / "configs"


HELP = {f"{dashes}{name}" for dashes in ("-", "--") for name in ("h", "help", "helpshort", "helpfull")}


@dataclasses.dataclass(frozen=True)
class Config(Generic[T]):
    """The flag `--config`; calling it gives the settings, once flags are parsed.

    Attributes:
      kind: the class of the settings.
      holder: the flag.
    """

    kind: type[T]
    holder: flags.FlagHolder[Any]

    def __call__(self) -> T:
        """The settings of the file, with what flags change of them."""
        return from_dict(self.kind, self.values())

    def values(self) -> dict[str, Any]:
        """The same as a nested dictionary, not checked yet."""
        try:
            found: dict[str, Any] = self.holder.value.to_dict()
        except Exception as error:  # whatever a user's file does
            raise InputError(
                f"--config: expected a file whose get_config() returns a ConfigDict: {_last_line(error)}"
            ) from None
        return found

    def named(self, setting: str) -> bool:
        """Whether a flag names a setting, or one of a group; a file of a user's own names all that it says."""
        name = f"{self.holder.name}.{setting}"
        found = (flag for flag in flags.FLAGS if flag == name or flag.startswith(f"{name}."))
        return not self._path().is_relative_to(CONFIGS) or any(flags.FLAGS[flag].present for flag in found)

    def file(self) -> str:
        """The name of the file, short for one of this project."""
        path = self._path()
        return str(path.relative_to(CHECKOUT) if path.is_relative_to(CHECKOUT) else path)

    def _path(self) -> pathlib.Path:
        return pathlib.Path(config_flags.get_config_filename(flags.FLAGS[self.holder.name])).resolve()


def define_config(default: str, kind: type[T]) -> Config[T]:
    """Defines `--config`, a file of `configs/` by default, whose fields are flags such as `--config.seed=1`.

    Args:
      default: the name of the file.
      kind: the class of its settings.
    """
    known = _flags_of(kind)
    for argument in sys.argv[1:]:  # ml_collections looks fields up before flags are parsed
        given = re.match(r"--?(?:no)?(config\.[\w.]+)", argument)
        if given and given[1] not in known:
            fail(helping.unknown_flag(given[1], known))
    sys.argv[1:] = with_config_found(sys.argv[1:])
    try:
        holder = config_flags.DEFINE_config_file("config", str(CONFIGS / default), "Python file with the settings.")
    except (AttributeError, KeyError) as error:
        fail(_missing(error))
    return Config(kind, holder)


def in_checkout(path: str) -> str:
    """A file that is not below the current folder but in this checkout, such as `configs/otbr.py`; others as given.

    `~` is the home folder.
    """
    path = os.path.expanduser(path)
    return str(CHECKOUT / path) if not os.path.exists(path) and (CHECKOUT / path).is_file() else path


def with_config_found(arguments: Sequence[str]) -> list[str]:
    """Arguments whose `--config` is looked up by `in_checkout`; what follows its colon stays as it is."""
    found: list[str] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=") if re.match("--?config=", argument) else ("", "", argument)
        if equals or (found and found[-1] in ("-config", "--config")):
            file, colon, rest = value.partition(":")
            argument = f"{flag}{equals}{in_checkout(file)}{colon}{rest}"
        found.append(argument)
    return found


def _flags_of(kind: type) -> list[str]:
    return [f"config.{name}" for name in all_names(kind)]


def run(
    main: Callable[[Sequence[str]], None], *, config: Config[Any] | None = None, hosts: Hosts | None = None
) -> None:
    """Runs an absl main; bad input prints one line `error: ...` and exits with status 2.

    Args:
      main: the main function of the program's module.
      config: the program's `--config`, if it has one.
      hosts: the flags with which several processes run the program together, if they can.
    """
    module = sys.modules[main.__module__]
    own = flags.FLAGS.get_key_flags_for_module(module)
    known = [flag.name for flag in own] + (["config", *_flags_of(config.kind)] if config else [])
    parse = partial(_parse_flags, known=known)
    if not HELP.isdisjoint(sys.argv):
        text = helping.program_help(module.__doc__ or "", own)
        if config:
            parse([argument for argument in sys.argv if argument not in HELP])
            settings, file = describe(config.kind, config.values()), config.file()
            text += "\n" + helping.settings_help(
                settings, file=file, whole=not {"-helpfull", "--helpfull"}.isdisjoint(sys.argv)
            )
        try:
            print(text, flush=True)
        except BrokenPipeError:
            _unread()
        sys.exit()

    def guarded(arguments: Sequence[str]) -> None:
        # After absl has put its own handler in place: one readable line for each warning, no news from libraries.
        logging.set_verbosity(logging.WARNING)
        # Orbax's remarks, and errors that it raises, too; this project's own loggers are not absl's.
        logging.get_absl_logger().setLevel("CRITICAL")
        logging.get_absl_handler().setFormatter(None)
        compiled.keep_programs()
        try:
            with as_usual():
                if hosts:
                    apart = {"process_id"}
                    given = {flag.name: flag.value for flag in own if flag.name not in apart}
                    hosts.join(module.__doc__ or "", [given, config.values() if config else None])
                main(arguments)
            sys.stdout.flush()
        except InputError as error:
            fail(_one_line(str(error)))
        except BrokenPipeError:
            _unread()
        except OSError as error:
            lost(error)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            fail(f"cannot write {error.filename or 'a temporary file'}: {error.strerror}; the same command goes on")
        except KeyboardInterrupt:
            fail("interrupted; the same command goes on from what is finished", status=130)
        except Exception as error:
            lost(error)
            if joined():
                traceback.print_exc()
                fail("failed, see above", status=1)
            raise

    app.run(guarded, flags_parser=parse)


def _unread() -> NoReturn:
    """Ends the program, since whoever read what it prints has read enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(141)


def _parse_flags(arguments: Sequence[str], *, known: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(list(arguments))
    except flags.UnrecognizedFlagError as error:
        fail(helping.unknown_flag(error.flagname, known))
    except flags.Error as error:
        # A config file's own error comes wrapped in absl's.
        before, ours, message = _one_line(str(error)).partition(f"{InputError.__module__}.{InputError.__name__}: ")
        fail(message if ours else before)
    except (AttributeError, KeyError) as error:
        fail(_missing(error))
    except Exception as error:  # ml_collections runs the user's config file here
        fail(f"--config: {_one_line(str(error))}")
    if len(rest) > 1:
        fail(f"expected flags only, found {rest[1]!r}")
    return rest


def _missing(error: Exception) -> str:
    inner = error.args[0] if isinstance(error.args[0], KeyError) else error
    return f"--config: expected a file with every setting that a flag changes, found: {_one_line(str(inner.args[0]))}"


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()


def _one_line(message: str) -> str:
    """A library's message without line breaks, and without the traceback that it may quote."""
    before, quoted, trace = message.partition("Traceback (most recent call last):")
    if quoted:
        message = before + trace.strip().splitlines()[-1]
    return " ".join(message.split())


def _refuse(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What a launcher cannot be imported without, such as a package that is not installed, ends in one line too."""
    if isinstance(error, InputError):
        fail(_one_line(str(error)))
    sys.__excepthook__(kind, error, trace)


sys.excepthook = _refuse


def _unraisable(failure: sys.UnraisableHookArgs) -> None:
    """TensorStore's threads go on writing after a disk was full, and have nobody left to tell."""
    if str(failure.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(failure)


sys.unraisablehook = _unraisable


def fail(message: str, *, status: int = 2) -> NoReturn:
    """Prints the line `error: MESSAGE` to standard error and exits with that status."""
    # TensorStore may still be reading a checkpoint that was refused, and complain about it while Python shuts down.
    sys.unraisablehook = lambda _: None
    if joined():
        end(message, status=status)
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(status)
