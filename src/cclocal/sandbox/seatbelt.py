"""The same walls on a Mac: a profile for sandbox-exec. Pure. Its text is tested; it was never run on a Mac.

Of several rules that match, the last one holds. Source of the language: Apple ships no reference; the operations are
those of the profiles in /System/Library/Sandbox/Profiles and of published ones (Chromium, Codex).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from cclocal.sandbox.walls import Walls

#: Folders that are hidden on a Mac beside those of walls.HIDDEN.
HIDDEN = ("/Users", "/Volumes", "/private/tmp", "/private/var/tmp", "/private/var/folders")
#: Programs and services that would start something outside the sandbox, or read the keychain.
_HELPERS = ("/usr/bin/open", "/usr/bin/osascript", "/bin/launchctl", "/usr/bin/security", "/usr/bin/crontab")
_SERVICES = (
    *("com.apple.SecurityServer", "com.apple.securityd.xpc", "com.apple.pasteboard.1"),
    *("com.apple.coreservices.launchservicesd", "com.apple.coreservices.appleevents"),
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/tty", "/dev/random", "/dev/urandom", "/dev/dtracehelper")


def profile(walls: Walls, ports: Iterable[int]) -> str:
    """The profile for a session whose agent reaches these ports of this machine only."""
    shown = (*walls.readable, *walls.writable)
    # a program looks at the folders above on its way to a file
    above = dict.fromkeys(parent for path in (*shown, *walls.protected) for parent in path.parents)
    lines = [
        "(version 1)",
        "(allow default)",
        "(deny network*)",
        *(f'(allow network-outbound (remote ip "localhost:{port}"))' for port in ports),
        '(allow network-bind network-inbound (local ip "localhost:*"))',
        "(deny appleevent-send lsopen)",
        _rule("deny process-exec", "literal", _HELPERS),
        _rule("deny mach-lookup", "global-name", _SERVICES),
        "(deny signal process-info*)",
        "(allow signal process-info* (target same-sandbox))",
        "(deny file-write*)",
        _rule("allow file-write*", "literal", _DEVICES),
        '(allow file-write* (regex #"^/dev/ttys[0-9]+$"))',
        _rule("deny file-read*", "subpath", walls.hidden),
        _rule("deny file-read*", "literal", walls.hidden_files),
        _rule("allow file-read-metadata", "literal", above),
        _rule("allow file-read*", "subpath", shown),
        _rule("allow file-write*", "subpath", walls.writable),
        _rule("deny file-write*", "subpath", (*walls.protected, *walls.missing)),
    ]
    return "\n".join(line for line in lines if line)


def _rule(action: str, kind: str, names: Iterable[Path | str]) -> str:
    """One rule for several names; empty for none. Strings are quoted as in JSON."""
    filters = " ".join(f"({kind} {json.dumps(str(name), ensure_ascii=False)})" for name in names)
    return f"({action} {filters})" if filters else ""
