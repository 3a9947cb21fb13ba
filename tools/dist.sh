#!/bin/sh
# Build the sdist and the wheel into a folder, check that both hold the same, and do the main job from the wheel in a bare
# environment elsewhere.   tools/dist.sh PYTHON FOLDER [CLAUDE]
set -eu
python=$1
folder=$2
here=$(cd "$(dirname "$0")" && pwd)
claude=${3:-$(command -v claude || "$here/claude.sh" "$(sed -n 's/^CLAUDE_VERSION.*= *//p' "$here/../Makefile")")}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
(cd "$here/.." && "$python" -m hatchling build --directory "$folder")
wheel=$(ls -t "$folder"/cclocal-*.whl | head -1)
sdist=$(ls -t "$folder"/cclocal-*.tar.gz | head -1)

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
mkdir "$place/source" "$place/again" "$place/home" "$place/project"
tar -xzf "$sdist" -C "$place/source" --strip-components=1
(cd "$place/source" && "$python" -m hatchling build --target wheel --directory "$place/again" >/dev/null)
names() { "$python" -m zipfile -l "$1" | awk 'NR > 1 {print $1}' | sort; }
names "$wheel" >"$place/names"
names "$place"/again/*.whl | diff "$place/names" - || { echo "the sdist builds another wheel" >&2; exit 1; }

"$python" -m venv "$place/env"
# without the engine, which cclocal then installs on yes, as it would for somebody at a terminal
"$place/env/bin/python" -m pip install --quiet --disable-pip-version-check "$wheel"
cd "$place/project"
HOME="$place/home" PATH="$place/env/bin:$(dirname "$claude"):/usr/bin:/bin" TERM=dumb LANG=C.UTF-8 \
    "$python" "$here/answer_yes.py" cclocal tiny -p "Create the file hello.txt with content: hello from the wheel"
[ "$(cat hello.txt)" = "hello from the wheel" ]
echo "$wheel
$sdist: both hold the same, and the wheel writes a file in a bare environment"
