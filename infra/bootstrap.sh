#!/usr/bin/env bash
# Makes .venv from the hashed lock; quick when nothing changed. From the package registries only.
set -euo pipefail
cd "$(dirname "$0")/.."
fail() { echo "upwell: $1" >&2; exit 2; }

[ "$(uname -s)" = Linux ] || fail "Linux is needed, this is $(uname -s)"
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | awk '{print $2}')
[ -n "$glibc" ] || fail "glibc 2.28 or newer is needed, this system has another C library"
[ "$(printf '2.28\n%s\n' "$glibc" | sort -V | head -n 1)" = 2.28 ] || fail "glibc 2.28 or newer is needed, this is $glibc"
python=${PYTHON:-python3}
command -v "$python" >/dev/null || fail "$python is not there: install Python 3.11 or newer"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "Python 3.11 or newer is needed, $python is $("$python" -V)"
"$python" -c 'import venv, ensurepip' 2>/dev/null || fail "$python has no venv: install python3-venv"

stamp=.venv/.stamp
wanted=$(cat pyproject.toml infra/requirements.lock infra/uv.lock infra/bootstrap.sh | sha256sum | cut -d' ' -f1)
[ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ] || exit 0

echo "upwell: setting up .venv (the first time on a machine downloads about 3 GB: torch and its CUDA libraries)"
if [ ! -x .venv/.uv/bin/uv ]; then
    "$python" -m venv .venv/.uv
    .venv/.uv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r infra/uv.lock
fi
uv=.venv/.uv/bin/uv
"$uv" venv --quiet --allow-existing --python "$python" .venv
"$uv" pip sync --quiet --python .venv/bin/python infra/requirements.lock
"$uv" pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
echo "$wanted" > "$stamp"
