#!/usr/bin/env bash
# Puts the pinned packages of requirements/<kind>.txt into .venv; when it holds them already, does nothing.
#
#     requirements/install.sh cpu|gpu          PYTHON=python3.12 chooses another interpreter
set -euo pipefail
cd "$(dirname "$0")/.."

kind=${1:?which one: cpu or gpu}
python=${PYTHON:-python3}
pins=requirements/$kind.txt
stamp=.venv/installed                            # "<kind> <hash of the pins>", written last
pytorch_cpu_index=https://download.pytorch.org/whl/cpu

say() { printf 'install: %s\n' "$*"; }
die() { printf 'install: %s\n' "$*" >&2; exit 1; }
pip_install() { .venv/bin/python -m pip -qq --disable-pip-version-check install --no-deps --no-compile --progress-bar off "$@"; }

[[ -f $pins ]] || die "there is no $pins; choose cpu or gpu"
wanted="$kind $(sha256sum "$pins" | cut -d' ' -f1)"
found=$(cat "$stamp" 2>/dev/null || true)
[[ $found != "$wanted" ]] || exit 0

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    die "Heliostat needs Python 3.11 or newer, and $python is $("$python" --version 2>/dev/null || echo missing);" \
        "set PYTHON=python3.11, for example"
command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null ||
    die "Heliostat needs a C++ compiler (vLLM and torch compile kernels while running); for example: apt install g++"

if [[ -n $found && ${found%% *} != "$kind" ]]; then
    say "1/3 .venv held the ${found%% *} packages; making it anew"
    "$python" -m venv --clear .venv
else
    say "1/3 Python environment in .venv"
    [[ -x .venv/bin/python ]] || "$python" -m venv .venv
fi
rm -f "$stamp"

torch=$(grep '^torch=' "$pins")
if [[ $kind == cpu ]]; then
    say "2/3 $torch (about 190 MB)"
    pip_install "$torch" 2>/dev/null || {
        say "    not where pip looks; asking PyTorch's CPU index, $pytorch_cpu_index"
        pip_install --extra-index-url "$pytorch_cpu_index" "$torch"
    }
else
    say "2/3 $torch"
    pip_install "$torch"
fi

say "3/3 $(grep -c '^[A-Za-z0-9]' "$pins") pinned packages from $pins; 2 to 4 minutes, longer on a slow line or for gpu"
pip_install -r "$pins"

echo "$wanted" >"$stamp"
say "done in $SECONDS s"
