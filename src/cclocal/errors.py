"""The errors a user can meet, each with an exit code.

Exit codes are stable; a script may rely on them:

    2  an argument, an environment variable or a file of the user's is wrong
   20  a download stalled          21  the disk is full
   22  offline, and files are missing   23  the model hub refused or was not reached
   24  a folder cclocal needs cannot be written
   25  the model does not fit this machine
   30  the backend is missing      31  the backend is too old for this model
   32  the server stopped while starting   33  the server never became ready
   34  another program has the port, or the server listens on another address
   35  the agent is missing or cannot run
  130  interrupted

After the agent has started, the exit status is the agent's own.
"""

from __future__ import annotations

from collections.abc import Sequence


class CclocalError(Exception):
    """A failure that a person can act on.

    `message` says what happened, `cause` holds the last real lines of the tool that failed, `hint` is one
    command or action to try, `log` the path of the whole story.
    """

    exit_code = 1

    def __init__(
        self, message: str, *, cause: Sequence[str] = (), hint: str | None = None, log: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.cause = tuple(cause)
        self.hint = hint
        self.log = log


class UsageError(CclocalError):
    """The command line, an environment variable or a file of the user's is wrong."""

    exit_code = 2


class DownloadStalledError(CclocalError):
    exit_code = 20


class OfflineError(CclocalError):
    """Files are missing and the network is off."""

    exit_code = 22


class HubError(CclocalError):
    """The model hub refused, or was not reached."""

    exit_code = 23


class FolderError(CclocalError):
    """A folder that cclocal needs cannot be made or written."""

    exit_code = 24


class DiskFullError(FolderError):
    """The same because the disk, or the user's share of it, is full."""

    exit_code = 21


class DoesNotFitError(CclocalError):
    """The model needs more memory than there is."""

    exit_code = 25


class BackendMissingError(CclocalError):
    exit_code = 30


class BackendTooOldError(CclocalError):
    exit_code = 31


class ServerDiedError(CclocalError):
    """The server stopped before it was ready."""

    exit_code = 32


class NotReadyError(CclocalError):
    """The server is up, but never proved that it can answer."""

    exit_code = 33


class PortError(CclocalError):
    """Another program has the port, or the server listens on another address."""

    exit_code = 34


class AgentMissingError(CclocalError):
    exit_code = 35


class InterruptedByUser(CclocalError):  # noqa: N818 - no error, a wish
    """Ctrl-C before the agent had the terminal."""

    exit_code = 130
