#!/usr/bin/env bash
# The tests on the device, then every benchmark at 7B, then one table; under nine minutes on one H100-class card.
#
#   benchmarks/gpu.sh                       everything, on CUDA
#   benchmarks/gpu.sh suite train-v1        some steps, by name: suite train-v1 train-1.5 mme pope decoding table
#   benchmarks/gpu.sh --small               the same script on a CPU at a small geometry, in a couple of minutes
#
# Needs no network and no data. Each step has a time limit, near which a benchmark ends with fewer rounds, and one that
# fails does not stop the others. Results:
# benchmarks/results/*.json (M2PT_RESULTS names another folder), with device, versions and commit. PYTHON names the
# interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."

export HF_HUB_OFFLINE=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTORCH_ALLOC_CONF=expandable_segments:True
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" PYTHONWARNINGS=ignore
python=${PYTHON:-$(command -v python || command -v python3)}
device=cuda v1=llava-v1-7b v15=llava-1.5-7b answering=llava-1.5-7b
train=(--rounds 5 --warmup 1) mme=(--images 96 --plain-images 6 --rounds 3) pope=(--images 20 --plain-images 1 --rounds 3) decoding=()
table=() patience=1 margin=20 # seconds of a step's limit in which no further round begins
if [ "${1:-}" = --small ]; then
  shift
  device=cpu v1=small v15=small answering=small table=(--small)
  train=(--rounds 3 --warmup 1)
  mme=(--images 3 --plain-images 1 --rounds 1) pope=(--images 1 --plain-images 1 --rounds 1)
  decoding=(--new-tokens 8 --rounds 2 --batch 1 --batch 4)
  patience=5 # a CPU may be busy
  export M2PT_TEST_DEVICE=cpu M2PT_RESULTS="${M2PT_RESULTS:-$(mktemp -d)}"
fi
steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(suite train-v1 train-1.5 mme pope decoding table)

failed=()
step() { # step NAME SECONDS COMMAND...
  local name=$1 limit=$(($2 * patience))
  shift 2
  case " ${steps[*]} " in *" $name "*) ;; *) return ;; esac
  local started=$SECONDS status=0
  echo "== $name"
  M2PT_UNTIL=$(($(date +%s) + limit - margin * patience)) timeout --kill-after=10 "$limit" "$@" || status=$?
  [ "$status" -eq 0 ] || failed+=("$name (exit status $status$([ "$status" -ne 124 ] || echo ", over $limit s"))")
  echo "-- $name: $((SECONDS - started)) s"
}

answer() { # answer SHAPE OPTIONS...
  echo "$python" benchmarks/answering.py --device "$device" --geometry "$answering" --without-repeated --shape "$@"
}

step suite 130 "$python" -m pytest tests/cuda -q -p no:cacheprovider
step train-v1 95 "$python" benchmarks/train_step.py --device "$device" --geometry "$v1" "${train[@]}"
[ "$v15" = "$v1" ] || step train-1.5 95 "$python" benchmarks/train_step.py --device "$device" --geometry "$v15" "${train[@]}"
# shellcheck disable=SC2046
step mme 65 $(answer mme "${mme[@]}")
# shellcheck disable=SC2046
step pope 65 $(answer pope "${pope[@]}")
step decoding 65 "$python" benchmarks/decoding.py --device "$device" --geometry "$answering" "${decoding[@]}"
step table 15 "$python" benchmarks/summary.py --device "$device" "${table[@]}"

for name in "${failed[@]}"; do echo "failed: $name"; done
[ ${#failed[@]} -eq 0 ]
