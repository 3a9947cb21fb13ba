#!/bin/sh
# tools/new_agent.sh VERSION: what a version of Claude Code sends first under our profile, against the newest verified
# one: the same bytes, or what differs. Run it before a version is added to VERIFIED.
set -eu
version=$1
here=$(dirname "$0")
python=$here/../.venv/bin/python
[ -x "$python" ] || { echo "make $here/../.venv/.test first" >&2; exit 1; }
claude=$("$here/claude.sh" "$version")
exec "$python" "$here/agent_facts.py" "$claude" "$("$here/claude.sh" 2.1.331)"
