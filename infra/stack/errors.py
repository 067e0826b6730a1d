"""What keeps the local stack from running, one clear line each.

StackError
 |- Unsupported       this machine: no Java or Postgres wheel for it
 |- WrongHash         a downloaded file is not the one in the lock
 |- DownloadFailed    a file cannot be had from the registry
 |- PortTaken         a wanted port is in use
 `- StartFailed       a component did not become ready; its last log lines are in the message
"""

from __future__ import annotations


class StackError(Exception):
    """Base of all. The message is for a person."""

    exit_code = 2


class Unsupported(StackError):
    """This machine cannot run the stack."""


class WrongHash(StackError):
    """A fetched file differs from the lock; it was not kept."""


class DownloadFailed(StackError):
    """A file cannot be had from the package registry."""

    exit_code = 3


class PortTaken(StackError):
    """A wanted port is in use."""


class StartFailed(StackError):
    """A component did not become ready."""

    exit_code = 3
