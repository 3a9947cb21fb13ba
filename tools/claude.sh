#!/bin/sh
# tools/claude.sh VERSION: print the path of that Claude Code, fetching it from npm into a private prefix first.
set -eu
version=$1
prefix=${XDG_CACHE_HOME:-$HOME/.cache}/cclocal-dev/claude-code-$version
package=$prefix/node_modules/@anthropic-ai/claude-code
claude=$prefix/bin/claude
if ! "$claude" --version >/dev/null 2>&1; then
    command -v npm >/dev/null || { echo "npm is needed to fetch Claude Code (or put claude on PATH)" >&2; exit 1; }
    echo "fetching Claude Code $version (about 80 MB) …" >&2
    mkdir -p "$prefix/bin"
    npm install --silent --no-audit --no-fund --prefix "$prefix" "@anthropic-ai/claude-code@$version" >&2
    # npm 11 does not run a package's install script by itself; this one puts the native program in its place
    (cd "$package" && node install.cjs) >&2
    ln -sf "$package/bin/claude.exe" "$claude"
    "$claude" --version >/dev/null
fi
echo "$claude"
