"""A program to run: its arguments and exactly which environment it gets.

Nothing here runs anything. Values that exist only once a session starts (port, key, folder) come as a `Binding`: a
command is a pure function of one, so `--dry-run` and the golden files show the same code path that a start takes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

#: What every program gets if the user has it: user, folders, terminal, language.
BASE_NAMES = frozenset(
    """PATH HOME USER LOGNAME SHELL PWD TERM COLORTERM TERM_PROGRAM TERM_PROGRAM_VERSION TERMINFO COLUMNS LINES
    NO_COLOR FORCE_COLOR CLICOLOR LANG LANGUAGE TZ TMPDIR XDG_RUNTIME_DIR XDG_CONFIG_HOME XDG_DATA_HOME
    XDG_CACHE_HOME XDG_STATE_HOME""".split()
)

#: What an agent's shell commands need besides: editors, displays, and where toolchains and libraries live. No
#: secrets, nothing that redirects traffic.
AGENT_NAMES = BASE_NAMES | frozenset(
    """EDITOR VISUAL PAGER LESS DISPLAY WAYLAND_DISPLAY XAUTHORITY TMUX STY SSH_TTY MANPATH INFOPATH
    VIRTUAL_ENV CONDA_PREFIX CONDA_DEFAULT_ENV CONDA_EXE MAMBA_ROOT_PREFIX PYENV_ROOT PYENV_VERSION UV_CACHE_DIR
    POETRY_HOME PIPX_HOME PIPX_BIN_DIR
    NVM_DIR NVM_BIN FNM_DIR VOLTA_HOME PNPM_HOME BUN_INSTALL DENO_DIR DENO_INSTALL COREPACK_HOME
    JAVA_HOME JDK_HOME GRADLE_HOME GRADLE_USER_HOME M2_HOME MAVEN_HOME ANDROID_HOME ANDROID_SDK_ROOT
    KOTLIN_HOME SCALA_HOME SDKMAN_DIR GOPATH GOROOT GOBIN GOCACHE GOMODCACHE CARGO_HOME CARGO_TARGET_DIR
    RUSTUP_HOME RUSTUP_TOOLCHAIN RBENV_ROOT RBENV_VERSION RVM_PATH GEM_HOME GEM_PATH DOTNET_ROOT FLUTTER_ROOT
    ASDF_DIR ASDF_DATA_DIR MISE_DATA_DIR LD_LIBRARY_PATH LIBRARY_PATH CPATH PKG_CONFIG_PATH CMAKE_PREFIX_PATH
    CUDA_HOME CUDA_PATH ROCM_PATH HOMEBREW_PREFIX HOMEBREW_CELLAR HOMEBREW_REPOSITORY NIX_PATH NIX_PROFILES
    IN_NIX_SHELL SSL_CERT_FILE SSL_CERT_DIR NIX_SSL_CERT_FILE""".split()
)
AGENT_PREFIXES = ("LC_",)

#: A model server gets what its GPU driver reads; LLAMA_ARG_* is left out because it would change the flags.
SERVER_NAMES = BASE_NAMES | {"LD_LIBRARY_PATH", "ONEAPI_ROOT"}
SERVER_PREFIXES = tuple("LC_ CUDA_ NVIDIA_ HIP_ HSA_ ROCR_ ROCM_ AMD_ VK_ GGML_ OMP_ ZE_".split())

#: Never handed on, not even by name: each can redirect the session, cost money, or run code inside the agent. An agent
#: adds its own (Agent.FORBIDDEN).
_REFUSED = re.compile(
    r"(AWS|AZURE|GOOGLE|GCP|GCLOUD|VERTEX|CLOUD_ML|OPENAI|OPENROUTER|GEMINI|MISTRAL|GROQ|DEEPSEEK|XAI|TOGETHER|COHERE"
    r"|OTEL|CCLOCAL)(_.*)?|(HTTPS?|ALL|FTP|NO)_PROXY|NODE_(OPTIONS|EXTRA_CA_CERTS|TLS_REJECT_UNAUTHORIZED)"
    r"|LD_PRELOAD|LD_AUDIT|DYLD_.*|.*_API_(KEY|TOKEN)|HF_TOKEN|CLOUDSDK_.*|BASH_ENV|ENV",
    re.IGNORECASE,
)

#: The scheme of a unix socket's address, and its name in the session's folder (llama.cpp requires the ending). It has a
#: folder of its own, the only one of a session that a sandboxed server writes.
UNIX, SOCKET = "unix:", "io/server.sock"
#: The longest path of a unix socket: 104 bytes with its end on macOS, 108 on Linux.
MOST_SOCKET_BYTES = 103
#: The length of a session's id, which is the name of its folder.
ID_BYTES = 8


def refusal(name: str, forbidden: re.Pattern[str]) -> str | None:
    """Why a variable must not be handed to an agent by --pass-env, or None if it may. `forbidden`: the agent's own."""
    if not (name.isascii() and name.isidentifier()):
        return f"“{name}” is not the name of a variable (only names are given, never values)"
    if (_REFUSED.fullmatch(name) or forbidden.fullmatch(name)) and name not in AGENT_NAMES:
        return f"{name} could redirect the session or cost money, so it never reaches the agent"
    return None


@dataclass(frozen=True, slots=True)
class Command:
    """A program with its arguments and environment.

    `env` is set, `keep` and `keep_prefixes` come from the caller's environment if they are there, and everything
    else is REMOVED: an allow-list, because no deny-list is ever complete.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    keep: frozenset[str] = BASE_NAMES
    keep_prefixes: tuple[str, ...] = ("LC_",)

    def kept(self, base: Mapping[str, str]) -> dict[str, str]:
        """The caller's variables that the program gets."""
        return {
            name: value
            for name, value in base.items()
            if (name in self.keep or name.startswith(self.keep_prefixes)) and name not in self.env
        }

    def removed(self, base: Mapping[str, str]) -> tuple[str, ...]:
        """The names of the caller's variables that the program does not get, sorted."""
        return tuple(sorted(base.keys() - self.environ(base).keys()))

    def environ(self, base: Mapping[str, str]) -> dict[str, str]:
        """The whole environment of the program, started by a caller whose environment is `base`."""
        return {**self.kept(base), **self.env}


#: A command, and the small files that it reads (name → content), written 0600 into the session's folder.
CommandAndFiles = tuple[Command, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Binding:
    """The values of one session.

    port, key: of its relay, which the agent gets. server_url, server_key: of its server: `unix:PATH` or
    `http://127.0.0.1:PORT`. log: the server's.
    """

    port: str
    key: str
    folder: str
    session_id: str
    log: str
    server_url: str = ""
    server_key: str = ""

    @property
    def socket(self) -> str:
        """The unix socket that the server listens on; empty if it listens on a port."""
        return self.server_url.removeprefix(UNIX) if self.server_url.startswith(UNIX) else ""

    @property
    def server_port(self) -> str:
        """The port that the server listens on; empty if it listens on a socket."""
        return "" if self.socket else self.server_url.rpartition(":")[2]

    def file(self, name: str) -> str:
        """The path of a file in the session's folder."""
        return f"{self.folder}/{name}"


def has_room_for_socket(sessions: str) -> bool:
    """Whether the path of a socket in a session's folder, below the folder `sessions`, is short enough to listen on."""
    return len(os.fsencode(f"{sessions}/{'x' * ID_BYTES}/{SOCKET}")) <= MOST_SOCKET_BYTES


def server_url(folder: str, port: int | str, *, on_socket: bool) -> str:
    """Where a session's server listens: on a socket in the session's folder, else on a port of its own."""
    return f"{UNIX}{folder}/{SOCKET}" if on_socket else f"http://127.0.0.1:{port}"


#: For --dry-run and golden files.
SHOWN = Binding(
    port="<free port>",
    key="<session key>",
    folder="<session folder>",
    session_id="<session id>",
    log="<server log>",
    server_url="http://127.0.0.1:<server port>",
    server_key="<server key>",
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The server's address, its API key, and the model's name in requests."""

    url: str
    key: str
    model: str

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    @classmethod
    def of_session(cls, binding: Binding, model: str) -> Endpoint:
        """Where a server that is started for this session answers."""
        return cls(binding.server_url, binding.server_key, model)

    @classmethod
    def of_relay(cls, binding: Binding, model: str) -> Endpoint:
        """Where the session's relay answers: what the agent gets."""
        return cls(f"http://127.0.0.1:{binding.port}", binding.key, model)


@dataclass(frozen=True, slots=True)
class Readiness:
    """What a server must show before an agent may rely on it.

    The child is alive, the socket is the child's, /v1/models answers 200 to the right key and 401 to a wrong one and
    names `endpoint.model`, and a message of one token is answered. `checks_key`: the server checks keys. `owns_socket`:
    the child listens itself; a program that holds a model in a server that another program started does not. `stall_s`:
    give up after so many seconds without a sign of life (log bytes, CPU time).
    """

    endpoint: Endpoint
    checks_key: bool = True
    owns_socket: bool = True
    stall_s: float = 240.0
