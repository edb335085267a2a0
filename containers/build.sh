#!/usr/bin/env bash
# Builds images: containers/build.sh TARGET… [-- OPTION…], where options are those of `docker build`. Goes on after a
# target that cannot be built, names it at the end, and then exits with 1. With REGISTRY=registry.example/team in the
# environment the images are named for that one; with --names before the targets, names are printed and nothing is built.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

# A Docker client of 23 or later needs the buildx plugin; Debian's 20.10 has BuildKit inside.
docker=docker
if ! docker buildx version >/dev/null 2>&1 && [ -x /usr/bin/docker ]; then docker=/usr/bin/docker; fi

# What the pipelines, manifests and charts call an image.
constant() { "${PYTHON:-python3}" -c "from $1 import $2; print($2)"; }
image_name() {
    local engine
    case $1 in
        cpu) constant components.images OPEN_ENGINE ;;
        gpu) constant components.images OPEN_ENGINE_GPU ;;
        client) engine=$(constant components.images OPEN_ENGINE) && echo "${engine%/*}/client:${engine##*:}" ;;
        triton) constant components.serve.release TRITON_IMAGE ;;
        *) echo "containers/build.sh: $1: no such target; there are cpu, gpu, triton and client" >&2; return 2 ;;
    esac
}

names_only=
if [ "${1:-}" = --names ]; then names_only=yes; shift; fi
targets=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do targets+=("$1"); shift; done
shift $(($# > 0))

revision=$(git rev-parse HEAD 2>/dev/null)
[ -z "$(git status --porcelain 2>/dev/null)" ] || revision+="-modified"
failed=()
for target in "${targets[@]}"; do
    name=$(image_name "$target") || exit
    [ -z "${REGISTRY:-}" ] || name=${REGISTRY%/}/${name##*/}
    [ -z "$names_only" ] || { echo "$name"; continue; }
    echo "== $target: $name"
    DOCKER_BUILDKIT=1 $docker build --target "$target" --tag "$name" \
        --label "org.opencontainers.image.version=${name##*:}" \
        --label "org.opencontainers.image.revision=$revision" "$@" . || failed+=("$target")
done
[ ${#failed[@]} -eq 0 ] || { echo "could not be built: ${failed[*]}" >&2; exit 1; }
