"""What a sandbox shows of a folder in which an earlier session could have planted something."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cclocal.agents.session import AgentSession, ConfigDir
from cclocal.command import Command
from cclocal.errors import SandboxError
from cclocal.paths import Env
from cclocal.sandbox.look import Needs, walls_for
from cclocal.sandbox.walls import Walls


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    for folder in (".ssh", ".aws", "project"):
        (home / folder).mkdir(parents=True)
    for file in (".ssh/id", ".ssh/config", ".aws/config"):
        (home / file).write_text("a secret")
    return home


def walls(home: Path, cwd: Path, root: Path | None = None, opened: tuple[str, ...] = ()) -> Walls:
    env = Env.of({"HOME": str(home), "PATH": "/usr/bin:/bin"})
    session = AgentSession(found=None, context_tokens=1, out_tokens=1, cwd=cwd, home=home / "agent", git_root=root)
    return walls_for(
        session, ConfigDir(home / "agent"), Command(("/bin/true",)), Needs(home / "tmp", opened=opened), env
    )


def mounted(found: Walls) -> list[Path]:
    """The real path of everything that is mounted from the machine."""
    return [path.resolve() for path in (*found.readable, *found.writable, *found.protected)]


def git(cwd: Path, *words: str) -> None:
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=cwd, check=True, capture_output=True
    )


PLANTED: dict[str, Callable[[Path], object]] = {
    "a link in the place of .git": lambda project: (project / ".git").symlink_to("../.ssh"),
    "a file that says where .git is": lambda project: (project / ".git").write_text("gitdir: ../.ssh"),
    "a link in the place of instructions": lambda project: (project / "CLAUDE.md").symlink_to("../.ssh/id"),
    "a link in the place of a folder": lambda project: (project / ".claude").symlink_to("../.ssh"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_an_earlier_session_planted_shows_nothing_that_is_hidden(home: Path, name: str) -> None:
    project = home / "project"
    PLANTED[name](project)
    found = walls(home, project, project)
    assert not [path for path in mounted(found) if path.is_relative_to(home / ".ssh")]


def test_a_link_in_a_repositorys_own_folder_shows_nothing_either(home: Path) -> None:
    project = home / "project"
    git(project, "init", "-q")
    (project / ".git/modules").mkdir()
    (project / ".git/modules/x").symlink_to(home / ".aws")
    (project / ".git/worktrees").mkdir()
    (project / ".git/worktrees/y").symlink_to(home / ".ssh")
    found = walls(home, project, project)
    assert not [path for path in mounted(found) if path.is_relative_to(home / ".aws") or path.match("*/.ssh/*")]


def test_a_worktree_and_a_submodule_write_their_repository_and_not_its_settings(home: Path) -> None:
    project, tree = home / "project", home / "tree"
    git(project, "init", "-q")
    git(project, "commit", "-q", "--allow-empty", "-m", "one")
    git(project, "worktree", "add", "-q", str(tree))
    found = walls(home, tree, tree)
    assert project / ".git" in found.writable
    assert {tree / ".git", project / ".git/config", project / ".git/hooks"} <= {*found.protected}
    other = home / "other"
    other.mkdir()
    git(other, "init", "-q")
    git(other, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(project), "sub")
    found = walls(home, other / "sub", other / "sub")
    assert other / ".git/modules/sub" in found.writable
    assert other / ".git/modules/sub/config" in found.protected
    # from above it is known too
    assert other / ".git/modules/sub/hooks" in walls(home, other, other).protected


def test_a_home_is_never_opened(home: Path) -> None:
    with pytest.raises(SandboxError):
        walls(home, home)
    with pytest.raises(SandboxError):
        walls(home, home.parent)
