#!/bin/sh
# Print the path of a llama-server built from the source inside the llama-cpp-python sdist, building it first
# (five to nine minutes on two cores), and llama-fit-params and ggml-rpc-server beside it. Kept in a cache folder between
# runs.
set -eu
version=0.3.36
prefix=${XDG_CACHE_HOME:-$HOME/.cache}/cclocal-dev/llama-server-$version
server=$prefix/build/bin/llama-server
if [ ! -e "$prefix/vendor" ] || { [ -x "$server" ] && ! "$server" --version >/dev/null 2>&1; }; then
    echo "building llama-server from llama-cpp-python $version …" >&2
    rm -rf "$prefix" && mkdir -p "$prefix/sdist"
    ${PYTHON:-python3} -m pip download --quiet --no-deps --no-binary llama-cpp-python \
        --dest "$prefix/sdist" "llama-cpp-python==$version" >&2
    tar -xzf "$prefix"/sdist/*.tar.gz -C "$prefix" --strip-components=1
    rm -rf "$prefix/sdist"
fi
if [ ! -x "$prefix/build/bin/ggml-rpc-server" ]; then
    cmake -S "$prefix/vendor/llama.cpp" -B "$prefix/build" -DCMAKE_BUILD_TYPE=Release -DLLAMA_CURL=OFF \
        -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DGGML_RPC=ON >"$prefix/cmake.log" 2>&1
fi
for target in llama-server llama-fit-params ggml-rpc-server; do
    cmake --build "$prefix/build" -j2 --target "$target" >"$prefix/build.log" 2>&1 ||
        { tail -20 "$prefix/build.log" >&2; exit 1; }
done
echo "$server"
