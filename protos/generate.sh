#!/usr/bin/env bash
# Generates the Python stubs of protos/opara and the descriptors of protos/inference into OUTDIR (default: beside this
# file), or compares them with the committed ones.
#   bash protos/generate.sh [OUTDIR]
#   bash protos/generate.sh --check
# The compiler is old on purpose: what it writes imports on every protobuf from 4.25 on, while newer ones write code
# that refuses older runtimes. It pins runtimes of its own, so it lives in an environment of its own.
set -euo pipefail

protos=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$(dirname "$protos")/.venv-stubs
# grpcio-tools 1.62 still imports pkg_resources, which setuptools dropped in 82.
pins=(grpcio-tools==1.62.3 grpcio==1.62.3 protobuf==4.25.8 mypy-protobuf==3.6.0 types-protobuf==4.25.0.20240417 setuptools==80.9.0)

if [[ "$(cat "$venv/pins" 2>/dev/null)" != "${pins[*]}" ]]; then
    "${PYTHON:-python3}" -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "${pins[@]}"
    echo "${pins[*]}" >"$venv/pins"
fi

# The mapping -Iopara_protos=... makes the stubs import each other as opara_protos.v1, whatever the folder of the sources is called.
generate() {
    mkdir -p "$1"
    PATH="$venv/bin:$PATH" "$venv/bin/python" -W ignore -m grpc_tools.protoc \
        "-Iopara_protos=$protos/opara" \
        "--python_out=$1" "--mypy_out=quiet:$1" "--grpc_python_out=$1" "--mypy_grpc_out=quiet:$1" \
        opara_protos/v1/inference.proto
    # No stubs: in a process that has those of another client of this protocol they would clash.
    "$venv/bin/python" -W ignore -m grpc_tools.protoc "-I$protos/inference" \
        "--descriptor_set_out=$1/opara_protos/open_inference.binpb" open_inference.proto
}

if [[ "${1:-}" == --check ]]; then
    fresh=$(mktemp -d)
    trap 'rm -rf "$fresh"' EXIT
    generate "$fresh"
    if ! diff -ru --exclude=__init__.py --exclude=py.typed --exclude=__pycache__ "$protos/opara_protos" "$fresh/opara_protos"; then
        echo "the committed stubs or descriptors differ from what the .proto gives: run 'bash protos/generate.sh' and commit the result" >&2
        exit 1
    fi
else
    generate "${1:-$protos}"
fi
