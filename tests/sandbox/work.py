"""The work that goes on at --sandbox strict: an agent does it (test_real_sandbox.py), docs/security.md lists it."""

from __future__ import annotations

#: What is done → the lines for sh, in a repository with a submodule `sub`; they fail if it cannot be done. PYTHON is
#: this project's, with pytest.
WORK = {
    "a commit with your name": """
        echo one > one.txt; git add one.txt; git commit -q -m one
        git log --format=%an -1 | grep -q Ann""",
    "a worktree, and a commit in it": """
        git worktree add -q tree; cd tree
        echo two > two.txt; git add two.txt; git commit -q -m two""",
    "a commit in a submodule": """
        cd sub; echo three > three.txt; git add three.txt; git commit -q -m three""",
    "make": r"""
        printf 'all:\n\techo made > made\n' > work.mk; make -s -f work.mk; grep -q made made""",
    "a compiler": r"""
        printf 'int main(void) { return 0; }\n' > a.c; cc -o a.out a.c; ./a.out""",
    "pytest": r"""
        printf 'def test_one():\n    assert True\n' > test_one.py; PYTHON -m pytest -q test_one.py""",
    "npm test": """
        printf '{"scripts": {"test": "node -e 1"}}' > package.json; npm test --silent""",
    "a server in the background, asked on the agent's own loopback": """
        python3 -m http.server 8123 --bind 127.0.0.1 >/dev/null 2>&1 &
        for n in 1 2 3 4 5 6 7 8 9 10; do
          python3 -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8123/')" 2>/dev/null && exit 0
          sleep .3
        done; exit 1""",
    "a temporary file": """
        echo temporary > /tmp/a; grep -q temporary /tmp/a; mktemp >/dev/null""",
    "`git status` as before": """
        test -z "$(git status --porcelain -- .claude .mcp.json .codex .pi)" """,
}
#: What stays forbidden → lines that must fail.
REFUSED = {
    "read a link that leads into your home": "cat AGENTS.md",
    "write instructions": "echo x >> CLAUDE.md",
}


def script(python: str) -> str:
    """All of it as one script; what was done is in the file `worked`, what was not in `refused`, a number per line."""
    done = "".join(f"( set -e; {lines} ) && echo {n} >> worked\n" for n, lines in enumerate(WORK.values()))
    refused = "".join(f"( set -e; {lines} ) || echo {n} >> refused\n" for n, lines in enumerate(REFUSED.values()))
    return (done + refused).replace("PYTHON", python)


def table() -> str:
    """What works, as a Markdown table for docs/security.md."""
    return "".join(("| | strict |\n|---|---|\n", *(f"| {name} | works |\n" for name in WORK)))
