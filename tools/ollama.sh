#!/bin/sh
# Print the path of an Ollama built from its Go module (three to four minutes on two cores; needs Go 1.24 or newer and
# a C++ compiler). The headers that module archives lack come from the llama-cpp-python sdist. Kept in a cache folder.
set -eu
version=0.17.4
prefix=${XDG_CACHE_HOME:-$HOME/.cache}/cclocal-dev/ollama-$version
program=$prefix/bin/ollama
if ! [ -x "$program" ]; then
    PATH=$PATH:/usr/local/go/bin
    command -v go >/dev/null || { echo "Go is not here, so Ollama cannot be built" >&2; exit 1; }
    "$(dirname "$0")/llama_server.sh" >/dev/null
    sources=${XDG_CACHE_HOME:-$HOME/.cache}/cclocal-dev/llama-server-0.3.36/vendor/llama.cpp/vendor
    echo "building Ollama $version …" >&2
    mkdir -p "$prefix"
    case $(uname -m) in
    x86_64) machine="-march=x86-64-v3" ;;
    *) machine="" ;;
    esac
    # without -O3 and the machine's vectors a prompt of Claude Code's takes minutes
    CGO_CPPFLAGS="-I$sources" CGO_CFLAGS="-O3 -g0 -w $machine" CGO_CXXFLAGS="-O3 -g0 -w $machine" \
        GOBIN=$prefix/bin GOFLAGS=-mod=mod go install \
        -ldflags "-s -w -X=github.com/ollama/ollama/version.Version=$version" \
        "github.com/ollama/ollama@v$version" >"$prefix/build.log" 2>&1 ||
        { tail -20 "$prefix/build.log" >&2; exit 1; }
fi
echo "$program"
