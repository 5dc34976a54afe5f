#!/usr/bin/env bash
# Several hosts by plain ssh, one process on each; the first one named coordinates:
#     HOSTS="node1 node2 node3" launch/ssh_hosts.sh --config=configs/sam_distill.py --config.mesh.data=24
# Every host needs this checkout at the same path (another one with DIRECTORY=), the working directory on a disk that
# all share, and PORT (9911) of the first host open to the others. SETUP is run first on each, for example
#     SETUP=". .venv/bin/activate"
set -euo pipefail

read -ra hosts <<<"${HOSTS:?HOSTS names the machines: HOSTS=\"node1 node2\" launch/ssh_hosts.sh --config=...}"
directory=${DIRECTORY:-$(cd "$(dirname "$0")/.." && pwd)}
address=${hosts[0]#*@}:${PORT:-9911}
pids=()
# One host that fails ends the others, which would wait for it for ever; so does Ctrl-C. -tt gives each process a
# terminal whose closing ends it. The same command goes on from the last checkpoint.
trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM
for i in "${!hosts[@]}"; do
    command="cd $(printf %q "$directory") && ${SETUP:-true} && exec python -m kdjax.launch $(printf '%q ' "$@")"
    command+="--coordinator=$address --processes=${#hosts[@]} --process=$i"
    ${SSH:-ssh -tt -o BatchMode=yes} "${hosts[$i]}" "$command" </dev/null > >(sed "s/^/[${hosts[$i]}] /") 2>&1 &
    pids+=($!)
done
for _ in "${pids[@]}"; do wait -n; done
