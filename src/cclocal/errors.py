"""The errors a user can meet, each with an exit code that says what it is for.

Exit codes are stable; a script may rely on them:

    2  an argument, an environment variable or a file of the user's is wrong
   20  a download stalled          21  the disk, or the user's share of it, is full
   22  offline, and files are missing   23  the model hub refused or was not reached
   24  a folder cclocal needs cannot be made or written
   25  the model does not fit this machine
   30  the backend is missing      31  the backend is too old for this model
   32  the server stopped while starting   33  the server is up, but never proved that it can answer
   34  another program has the port, or the server listens on another address
   35  the agent is missing or cannot run
   36  the sandbox that was asked for, or the default one, does not work here
   40  the model's files could run code, or are not the ones that the catalog pins
   70  a fault in cclocal itself
  130  interrupted before the agent had the terminal

After the agent has started, the exit status is the agent's own.
"""

from __future__ import annotations

from collections.abc import Sequence


class CclocalError(Exception):
    """A failure that a person can act on.

    `message` says what happened, `cause` holds the last real lines of the tool that failed, `hint` is one
    command or action to try, `log` the path of the whole story, `cure` a command that installs what is missing.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        cause: Sequence[str] = (),
        hint: str | None = None,
        log: str | None = None,
        cure: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.cause = tuple(cause)
        self.hint = hint
        self.log = log
        self.cure = tuple(cure)


class UsageError(CclocalError):
    exit_code = 2


class DownloadStalledError(CclocalError):
    exit_code = 20


class OfflineError(CclocalError):
    exit_code = 22


class HubError(CclocalError):
    exit_code = 23


class FolderError(CclocalError):
    exit_code = 24


class DiskFullError(FolderError):
    exit_code = 21


class DoesNotFitError(CclocalError):
    exit_code = 25


class BackendMissingError(CclocalError):
    exit_code = 30


class BackendTooOldError(CclocalError):
    exit_code = 31


class ServerDiedError(CclocalError):
    exit_code = 32


class NotReadyError(CclocalError):
    exit_code = 33


class PortError(CclocalError):
    exit_code = 34


class AgentMissingError(CclocalError):
    exit_code = 35


class SandboxError(CclocalError):
    exit_code = 36


class UnsafeModelError(CclocalError):
    exit_code = 40


class FaultError(CclocalError):
    exit_code = 70


class UserQuit(Exception):  # noqa: N818 - no error, a wish
    """The user left a menu or declined to start: nothing is said."""

    def __init__(self, exit_code: int = 0) -> None:
        super().__init__()
        self.exit_code = exit_code


class InterruptedByUser(CclocalError):  # noqa: N818 - no error, a wish
    exit_code = 130
