#!/usr/bin/env bash
# Everything that only a GPU can show, in at most 9 minutes on one NVIDIA GPU, in order of worth.
#
#   bash benchmarks/gpu.sh OUT [--wheels DIR] [--mnist FILE] [--device cuda|cpu] [--minutes 9]
#   python benchmarks/report.py OUT     # afterwards, anywhere: benchmarks/results/gpu.md
#
# OUT       folder of the results: tests.json, training.json, inference.json, row.json, steps.json, and the run of the
#           row in two parts of at most 15 MiB (row.tar.0, row.tar.1). Seven files, flat. Each is complete at every
#           moment: a step that fails or runs out of time leaves what it had. A second call with the same OUT runs
#           the tests again, measures what training and inference lack, and resumes the row.
# --wheels  folder of wheels for what is missing: torch, torchvision, pillow, numpy, onnx, onnxruntime, safetensors,
#           accelerate, pytest and scikit-learn must be installed. Without rich or filelock nothing runs and the exit
#           status is 1; without another package its tests and rows are skipped with the reason. Collect them where
#           there is a network:
#             python -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
#               --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
#               -d wheels filelock rich markdown-it-py mdurl pygments typer click shellingham \
#               annotated-doc zuko onnxscript onnx-ir torchmetrics lightning-utilities
# --mnist   MNIST as one compressed file, made by: tar -C "$VAELIB_DATA" -czf mnist.tar.gz MNIST/raw
#           VAELIB_DATA itself is taken if it is set; without either, what needs MNIST is skipped.
# --device  cpu rehearses the same steps in small on a machine without a GPU.
# --minutes for all steps together; their limits below are for 9 and shrink in proportion.
#
# PYTHON names the interpreter (python3). Where there is no repository, name the commit by VAELIB_COMMIT.
set -uo pipefail

# Seconds that a step may take, of 540. The row gets what remains.
limit_of_tests=190
limit_of_training=160
limit_of_inference=110
to_end=8 # seconds that are kept for packing

usage() { sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p}' "$0"; exit 2; }
[ $# -ge 1 ] && [ "${1#-}" = "$1" ] || usage
out=$1 wheels="" mnist="" device=cuda minutes=9
shift
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || usage
    case $1 in
        --wheels) wheels=$(realpath "$2") ;;
        --mnist) mnist=$(realpath "$2") ;;
        --device) device=$2 ;;
        --minutes) minutes=$2 ;;
        *) usage ;;
    esac
    shift 2
done
case $device in cuda | cpu) ;; *) usage ;; esac
case $minutes in *[!0-9]* | "" | 0) usage ;; esac
[ -z "$wheels" ] || [ -d "$wheels" ] || { echo "--wheels must be a folder, got $wheels" >&2; exit 2; }
[ -z "$mnist" ] || [ -f "$mnist" ] || { echo "--mnist must be a file, got $mnist" >&2; exit 2; }

mkdir -p "$out"
out=$(realpath "$out")
root=$(realpath "$(dirname "$0")/..")
python=${PYTHON:-python3}
budget=$((minutes * 60))
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONPYCACHEPREFIX=$work/pycache
# A rehearsal compiles nothing, which would take most of its time and is no question of this script.
[ "$device" = cuda ] || export ACCELERATE_USE_CPU=1 TORCH_COMPILE_DISABLE=1

say() { printf '\n== %s (%s s)\n' "$*" "$SECONDS"; }
results() { "$python" "$root/benchmarks/gpu_results.py" "$out/steps.json" "$@"; }

say "wheels and images"
if [ -n "$wheels" ]; then
    export PYTHONPATH=$work/site:$PYTHONPATH
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$work/site" "$wheels"/*.whl
fi
if [ -n "$mnist" ]; then
    export VAELIB_DATA=$work/data
    mkdir "$VAELIB_DATA"
    tar -C "$VAELIB_DATA" -xf "$mnist"
fi
results begin "$device" || exit 2
missing=$(results missing)

# step LIMIT COMMAND...: run it, and note how it ended.
failed=0 ran=0
step() {
    local name=$1 limit=$2 left=$((budget - SECONDS - to_end)) started=$SECONDS code=0
    shift 2
    [ "$limit" -le "$left" ] || limit=$left
    say "$name, at most $limit s"
    if [ "$limit" -lt 10 ]; then
        results end "$name" skipped 0 "no time remained"
    elif [ -n "$missing" ]; then
        results end "$name" skipped 0 "$missing"
    else
        ran=1
        STEP_BEGAN=$(date +%s) timeout --signal=KILL "$limit" "$@" "$((limit - limit / 20 - 5))" || code=$?  # its result file is whole at every moment
        case $code in
            0) results end "$name" passed $((SECONDS - started)) "" ;;
            137) results end "$name" "timed out" $((SECONDS - started)) "at its limit of $limit s" ;;
            *) results end "$name" failed $((SECONDS - started)) "exit status $code" ;;
        esac
        [ "$code" -eq 0 ] || failed=1
    fi
}
part() { echo $(($1 * minutes / 9)); }

options=(--device "$device")
[ ! -d "${VAELIB_DATA:-}/MNIST" ] || options+=(--mnist mnist) # by the name that vl.data.load knows, below VAELIB_DATA
[ "$device" = cuda ] || options+=(--quick)
programs=$root/benchmarks
step tests "$(part $limit_of_tests)" "$python" "$programs/gpu_tests.py" --out "$out/tests.json" --device "$device" --seconds
step training "$(part $limit_of_training)" "$python" "$programs/gpu_training.py" --out "$out/training.json" "${options[@]}" --seconds
step inference "$(part $limit_of_inference)" "$python" "$programs/gpu_inference.py" --out "$out/inference.json" "${options[@]}" --seconds

mkdir "$work/runs"
if [ -f "$out/row.tar.0" ]; then cat "$out"/row.tar.? | tar -C "$work/runs" -xf -; fi
step row "$budget" "$python" "$programs/gpu_row.py" --out "$out/row.json" --runs "$work/runs" "${options[@]}" --seconds
if [ -n "$(ls -A "$work/runs")" ]; then
    tar -C "$work/runs" --exclude='*/last' -cf - . | split -b 15M -d -a 1 - "$work/row.tar."
    rm -f "$out"/row.tar.?
    mv "$work"/row.tar.? "$out/"
fi

say "how the steps ended"
results show
[ "$ran" -eq 1 ] || { echo "No step ran." >&2; exit 1; }
exit $failed
