#!/bin/sh
# tools/npm_agent.sh PACKAGE VERSION PROGRAM: print the path of that agent's program, fetching it from npm into a
# private prefix first. Codex is 280 MB, pi 180 MB.
set -eu
package=$1 version=$2 program=$3
prefix=${XDG_CACHE_HOME:-$HOME/.cache}/cclocal-dev/$program-$version
path=$prefix/node_modules/.bin/$program
if ! "$path" --version >/dev/null 2>&1; then
    command -v npm >/dev/null || { echo "npm is needed to fetch $package (or put $program on PATH)" >&2; exit 1; }
    echo "fetching $package $version …" >&2
    mkdir -p "$prefix"
    npm install --silent --no-audit --no-fund --prefix "$prefix" "$package@$version" >&2
    "$path" --version >/dev/null
fi
echo "$path"
