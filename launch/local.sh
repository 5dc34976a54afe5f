#!/usr/bin/env bash
# One machine, all its devices:
#     launch/local.sh --config=configs/sam_distill.py --config.mesh.data=4 --config.mesh.fsdp=2
# Several processes on one machine, to try out what several hosts do (each on its own share of the CPU):
#     PROCESSES=2 launch/local.sh --config=configs/sam_distill.py:smoke
set -euo pipefail
cd "$(dirname "$0")/.."

count=${PROCESSES:-1}
[ "$count" -gt 1 ] || exec python -m kdjax.launch "$@"

address=localhost:${PORT:-9911}
pids=()
stop() { kill -TERM "${pids[@]}" 2>/dev/null || true; }
trap stop EXIT # one that fails ends the others, which would wait for it for ever
trap 'stop; wait "${pids[@]}"; exit $?' INT TERM # told to stop, all of them save and end
for ((i = 0; i < count; i++)); do
    python -m kdjax.launch "$@" --coordinator="$address" --processes="$count" --process="$i" &
    pids+=($!)
done
for _ in "${pids[@]}"; do wait -n; done
