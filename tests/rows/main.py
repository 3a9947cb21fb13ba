"""cclocal with one more backend and one more agent: a row each, and no other file."""

from __future__ import annotations

from cclocal.agents import AGENTS
from cclocal.backends import BACKENDS
from cclocal.cli.main import main
from tests.rows import small_agent, small_backend

if __name__ == "__main__":
    BACKENDS[small_backend.NAME] = small_backend  # type: ignore[assignment]
    AGENTS[small_agent.NAME] = small_agent
    main()
