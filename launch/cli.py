"""What all launchers share: the config flag, help, and bad input ending in one line.

A program imports JAX in its `main`, or later. So help and errors about flags, settings and paths come at once, from
`launch.index`; with a config file of the user's own they come after JAX is imported.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from launch import early, helping, index, kinds
from launch.hosts import Hosts, end, end_after_another, process_name
from launch.index import CHECKOUT, CONFIGS
from otbr_jax.errors import InputError
from otbr_jax.settings import Setting, all_names, describe, describe_all, former_names, from_dict

HELP = {f"{dashes}{name}" for dashes in ("-", "--") for name in ("h", "help", "helpshort", "helpfull")}


@dataclasses.dataclass(frozen=True)
class Config:
    """The flag `--config`; calling it gives the settings, once flags are parsed.

    Attributes:
      default: a file of `configs/`.
      kind: the kind of settings, a name of `launch.kinds.KINDS`.
    """

    default: str
    kind: str

    def __call__(self) -> Any:
        """The settings of the file, as flags change them."""
        values = self.values()
        return from_dict(kinds.KINDS[self.kind]().Config, values)

    def all_settings(self) -> list[Setting]:
        """All settings that there may be, whatever the file chooses."""
        known = index.current()
        return known.all_settings(self.kind) if known else describe_all(kinds.KINDS[self.kind]().Config)

    def describe(self) -> list[Setting]:
        """All settings, with the values of the file and of flags."""
        return describe(kinds.KINDS[self.kind]().Config, self.values())

    def values(self) -> dict[str, Any]:
        """The same as a nested dictionary, not checked yet."""
        try:
            config: Any = flags.FLAGS["config"].value
            values: dict[str, Any] = config.to_dict()
        except Exception as error:  # whatever a user's file does
            raise InputError(_unusable(error)) from None
        return values

    def is_set(self, setting: str) -> bool:
        """Whether a flag sets a setting, or one of a group; a file of the user's own sets all that is in it."""
        name = f"config.{setting}"
        names = (flag for flag in flags.FLAGS if flag == name or flag.startswith(f"{name}."))
        return not self._path().is_relative_to(CONFIGS) or any(flags.FLAGS[flag].present for flag in names)

    def file(self) -> str:
        """The name of the file, short for one of this project."""
        return _short(str(self._path()))

    def define(self) -> None:
        """Defines the flag; ml_collections then runs the file, or where a flag names another does so as it parses."""
        try:
            config_flags.DEFINE_config_file("config", str(CONFIGS / self.default), "Python file with the settings.")
        except (AttributeError, KeyError) as error:
            fail(_missing(error))

    def _path(self) -> pathlib.Path:
        return pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).resolve()


def define_config(default: str, kind: str) -> Config:
    """The flag `--config`, a file of `configs/` by default, whose fields are flags such as `--config.seed=1`.

    Args:
      default: the name of the file.
      kind: the kind of its settings, a name of `launch.kinds.KINDS`.
    """
    return Config(default, kind)


def in_checkout(path: str) -> str:
    """A file that is not below the current folder but in this checkout, such as `configs/otbr.py`; others as given.

    `~` is the home folder.
    """
    path = os.path.expanduser(path)
    return str(CHECKOUT / path) if not os.path.exists(path) and (CHECKOUT / path).is_file() else path


def with_config_path(arguments: Sequence[str]) -> list[str]:
    """Arguments whose `--config` is looked up by `in_checkout`; what follows its colon stays as it is."""
    result: list[str] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=") if re.match("--?config=", argument) else ("", "", argument)
        if equals or (result and result[-1] in ("-config", "--config")):
            file, colon, rest = value.partition(":")
            argument = f"{flag}{equals}{in_checkout(file)}{colon}{rest}"
        result.append(argument)
    return result


def choices(name: str) -> list[str]:
    """The names that a flag is chosen from, one of `launch.kinds.CHOICES`."""
    known = index.current()
    return [*known.choices[name]] if known else kinds.CHOICES[name]()


def run(
    main: Callable[[Sequence[str]], None],
    *,
    config: Config | None = None,
    hosts: Hosts | None = None,
    check: Callable[[], None] = lambda: None,
    formerly: Mapping[str, str] = {},
) -> None:
    """Runs an absl main; bad input prints one line `error: ...` and exits with status 2.

    Args:
      main: the main function of the program's module.
      config: the program's `--config`, if it has one.
      hosts: the flags with which several processes run the program together, if they can.
      check: raises InputError if parsed flags do not fit together, or name a path that does not exist; imports little.
      formerly: old names of the program's own flags, and their current ones.
    """
    module = sys.modules[main.__module__]
    own = flags.FLAGS.get_key_flags_for_module(module)
    known = [flag.name for flag in own]
    if config:
        possible = config.all_settings()
        names = [f"config.{name}" for name in all_names(possible)]
        old_names = {f"config.{old}": f"config.{current}" for old, current in former_names(possible).items()}
        for argument in sys.argv[1:]:  # ml_collections looks fields up before flags are parsed
            flag = re.match(r"--?(?:no)?(config\.[\w.]+)", argument)
            if flag and flag[1] not in names:
                fail(helping.unknown_flag(flag[1], names, formerly=old_names))
        known += ["config", *names]
        sys.argv[1:] = with_config_path(sys.argv[1:])
    parse = partial(_parse_flags, known=known, formerly=formerly)
    show_help = partial(_show_help, module.__doc__ or "", own)
    arguments = [argument for argument in sys.argv if argument not in HELP]
    wants_help = len(arguments) < len(sys.argv)
    with early.temporary_flags():
        settings: Sequence[Setting] | None = ()
        file, rest = early.split_config(arguments, default=str(CONFIGS / config.default) if config else "")
        if config:
            settings = _settings_of(config, file, rest, parse=parse, exactly=wants_help)
        elif not wants_help:
            parse(arguments)
        if settings is not None and wants_help:
            show_help(settings, _short(file) if config else "")
        if settings is not None:
            try:
                early.check(settings)
                if hosts:
                    hosts.are_wanted()
                check()
            except InputError as error:
                fail(_one_line(str(error)))
    if sys.stderr.isatty() and "jax" not in sys.modules:
        print("loading JAX ...", file=sys.stderr, flush=True)
    if config:
        config.define()
        if wants_help:
            parse(arguments)
            show_help(config.describe(), config.file())

    def guarded(arguments: Sequence[str]) -> None:
        # After absl has installed its own handler: one readable line for each warning, nothing from libraries.
        logging.set_verbosity(logging.WARNING)
        # Orbax logs remarks, and the errors that it raises; this project's own loggers are not absl's.
        logging.get_absl_logger().setLevel("CRITICAL")
        logging.get_absl_handler().setFormatter(None)
        from launch import compiled  # imports JAX
        from otbr_jax.runs.numerics import default_numerics

        compiled.keep_programs()
        try:
            with default_numerics():
                if hosts:
                    apart = {"process_id"}
                    values = {flag.name: flag.value for flag in own if flag.name not in apart}
                    hosts.join(module.__doc__ or "", [values, config.values() if config else None])
                main(arguments)
            sys.stdout.flush()
        except InputError as error:
            fail(_one_line(str(error)))
        except BrokenPipeError:
            _exit_at_broken_pipe()
        except OSError as error:
            end_after_another(error)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            fail(f"cannot write {error.filename or 'a temporary file'}: {error.strerror}; the same command goes on")
        except KeyboardInterrupt:
            fail("interrupted; the same command goes on from what is finished", status=130)
        except Exception as error:
            end_after_another(error)
            if process_name():
                traceback.print_exc()
                fail("failed, see above", status=1)
            raise

    app.run(guarded, flags_parser=parse)


def _settings_of(
    config: Config, file: str, arguments: Sequence[str], *, parse: Callable[[Sequence[str]], Any], exactly: bool
) -> list[Setting] | None:
    """As `early.settings_of`; what follows the file's colon changes values, but not what they may be."""
    name, colon, _ = file.partition(":")
    try:
        open(name).close()
    except OSError as error:
        fail(_unusable(error))
    if colon and exactly:
        return None
    return early.settings_of(config.kind, pathlib.Path(name).resolve(), arguments, parse=parse)


def _show_help(usage: str, own: Sequence[flags.Flag], settings: Sequence[Setting], file: str) -> NoReturn:
    text = helping.program_help(usage, own)
    if file:
        whole = not {"-helpfull", "--helpfull"}.isdisjoint(sys.argv)
        text += "\n" + helping.settings_help(settings, file=file, whole=whole)
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _exit_at_broken_pipe()
    sys.exit()


def _short(file: str) -> str:
    """The name of a config file, short for one of this project."""
    path = pathlib.Path(file).resolve()
    return str(path.relative_to(CHECKOUT) if path.is_relative_to(CHECKOUT) else path)


def _exit_at_broken_pipe() -> NoReturn:
    """Ends the program: the reader of its output has closed the pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(141)


def _parse_flags(arguments: Sequence[str], *, known: Sequence[str], formerly: Mapping[str, str]) -> list[str]:
    try:
        rest = flags.FLAGS(list(arguments))
    except flags.UnrecognizedFlagError as error:
        fail(helping.unknown_flag(error.flagname, known, formerly=formerly))
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


def _unusable(error: Exception) -> str:
    last = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
    return f"--config: expected a file whose get_config() returns a ConfigDict: {last}"


def _one_line(message: str) -> str:
    """A library's message without line breaks, and without the traceback that it may quote."""
    before, traceback_head, trace = message.partition("Traceback (most recent call last):")
    if traceback_head:
        message = before + trace.strip().splitlines()[-1]
    return " ".join(message.split())


def _refuse(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """One line for an error while a launcher is imported, such as a package that is not installed."""
    if isinstance(error, InputError):
        fail(_one_line(str(error)))
    sys.__excepthook__(kind, error, trace)


sys.excepthook = _refuse


def _unraisable(failure: sys.UnraisableHookArgs) -> None:
    """Hides the errors of TensorStore's threads, which go on writing after a disk was full."""
    if str(failure.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(failure)


sys.unraisablehook = _unraisable


def fail(message: str, *, status: int = 2) -> NoReturn:
    """Prints the line `error: MESSAGE` to standard error and exits with that status."""
    # TensorStore may still be reading a checkpoint that was refused, and complain about it while Python shuts down.
    sys.unraisablehook = lambda _: None
    if process_name():
        end(message, status=status)
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(status)
