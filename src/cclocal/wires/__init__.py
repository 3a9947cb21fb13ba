"""The APIs that agents and servers speak, each a module of pure functions.

Readiness, remote servers, checks and the prompt cache all send their messages through a wire, so that an agent that
speaks another API needs no change there.
"""

from __future__ import annotations

from types import MappingProxyType

from cclocal.wires import anthropic, chat, responses
from cclocal.wires.wire import Wire as Wire

WIRES: MappingProxyType[str, Wire] = MappingProxyType({wire.NAME: wire for wire in (anthropic, chat, responses)})
