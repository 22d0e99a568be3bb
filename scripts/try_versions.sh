#!/usr/bin/env bash
# Runs the quick suite on the lowest or the newest versions that pyproject.toml allows:
#
#     scripts/try_versions.sh lowest|newest [arguments for pytest]
#
# The versions are chosen by uv, whatever caps pip has on this machine, and installed into a
# temporary folder, about 6 GB. "lowest" is what the bounds say, or more where another dependency
# asks for more. PYTHON=python3.10 chooses the interpreter, TMPDIR the place.
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1-} in
lowest) resolution=lowest-direct ;;
newest) resolution=highest ;;
*)
    echo "usage: scripts/try_versions.sh lowest|newest [arguments for pytest]" >&2
    exit 2
    ;;
esac
shift

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet uv
"$folder/bin/uv" pip install --quiet --python "$folder/bin/python" --resolution "$resolution" \
    --editable '.[test]'
"$folder/bin/uv" pip list --quiet --python "$folder/bin/python"
"$folder/bin/python" -m pytest -m "not slow" "$@"
