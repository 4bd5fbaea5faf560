"""Locks between processes, on one machine or several that share a folder; a lock ends with its process."""

from __future__ import annotations

import errno
import fcntl
import os
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager

from otbr_jax.errors import InputError

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def locked(path: pathlib.Path, *, name: str, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Holds a lock while the context lasts.

    The kernel keeps the lock, or the server of a network file system (NFS 4, Lustre mounted with `flock`). So it ends
    when its process ends or is killed. Its file is empty and stays.

    Args:
      path: the lock's file; it and its folder are created if they are missing.
      name: the argument that says where the file lies, for messages.
      shared: whether several processes may hold the lock, if all of them share it.
      wait: whether to wait until no other process holds it.

    Yields:
      Whether the lock is held; without it only if `wait` is False.

    Raises:
      InputError: if the file cannot be created, or is on a file system without locks.
    """
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(
            f"{name}: expected a directory that can be written, found {path.parent}: {error.strerror}"
        ) from None
    try:
        yield _acquire(descriptor, path, name=name, shared=shared, wait=wait)
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, path: pathlib.Path, *, name: str, shared: bool, wait: bool) -> bool:
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, how if wait else how | fcntl.LOCK_NB)
    except OSError as error:
        if not wait and error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno in _NO_LOCKS:
            raise InputError(f"{name}: {path.parent} is on a file system without locks: {error.strerror}") from None
        raise InputError(f"{name}: expected a file that can be locked, found {path}: {error.strerror}") from None
    return True
