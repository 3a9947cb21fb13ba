#!/bin/sh
# Print the path of a vllm-mlx in an environment of its own: text models only, no torch, on the processor (250 MB).
# Kept in a cache folder between runs.
set -eu
version=0.6.0
prefix=${XDG_CACHE_HOME:-$HOME/.cache}/cclocal-dev/vllm-mlx-$version
program=$prefix/bin/vllm-mlx
if ! [ -e "$prefix/whole" ]; then
    echo "fetching vllm-mlx $version …" >&2
    rm -rf "$prefix"
    ${PYTHON:-python3} -m venv "$prefix"
    "$prefix/bin/python" -m pip install --quiet --disable-pip-version-check "mlx[cpu]==0.32.4" "mlx-lm==0.31.3" \
        fastapi "starlette>=1.0.1" uvicorn prometheus-client jsonschema psutil pyyaml requests python-multipart >&2
    "$prefix/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "vllm-mlx==$version" >&2
    touch "$prefix/whole"
fi
# MLX's wheel for processors brings the reference BLAS, which is ten times as slow as OpenBLAS, if that is here
fast=$(ls /usr/lib/*/openblas*/libblas.so.3 2>/dev/null | head -1)
for blas in "$prefix"/lib/python*/site-packages/mlx_cpu.libs/libblas-*.so.*; do
    [ -L "$blas" ] || cp "$blas" "$prefix/$(basename "$blas")"
    if [ -n "$fast" ]; then ln -sf "$fast" "$blas"; else ln -sf "$prefix/$(basename "$blas")" "$blas"; fi
done
echo "$program"
