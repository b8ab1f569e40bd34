#!/bin/bash
# `voxzoo train` under torchrun. On one machine with four GPUs, and on each of two machines:
#
#   PROCESSES=4 bash torchrun.sh trainer=multinode experiment=quickstart
#   NODES=2 NODE_RANK=0 MASTER_ADDR=first-machine bash torchrun.sh trainer=multinode experiment=quickstart root=/shared/runs
#
# SIGTERM or SIGUSR1 to this script reaches all processes: they finish the step, save it and stop, and the script exits
# with 75. The same command goes on, also on another number of machines or processes. `root` must be a folder that all
# machines share. PROCESSES: on this machine; the number of its GPUs where it is not set.

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export VOXZOO_LAUNCHER_FILE="$(mktemp)"  # each process writes `ready` when it can be told, `stopped` when it exits with 75

says() { grep -q "$1" "$VOXZOO_LAUNCHER_FILE"; }
tell() {
    if says ready; then  # to the processes themselves: 30 s after a signal torchrun kills them, whether they have saved or not
        kill -s "$1" $(pgrep -P "$child") 2>/dev/null
    else  # there is nothing to save
        echo stopped >> "$VOXZOO_LAUNCHER_FILE"
        kill "$child" 2>/dev/null
    fi
}
trap 'tell TERM' TERM
trap 'tell USR1' USR1

torchrun --nnodes="${NODES:-1}" --node-rank="${NODE_RANK:-0}" --nproc-per-node="${PROCESSES:-gpu}" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${MASTER_PORT:-29500}" \
    -m voxzoo.tasks.commands.cli train "$@" &
child=$!
if says stopped; then  # a signal came between these two lines
    kill "$child"
fi
wait "$child"
code=$?
while kill -0 "$child" 2>/dev/null; do  # a signal ends `wait` before the processes have saved
    wait "$child"
    code=$?
done

if [ "$code" -ne 0 ] && says stopped; then
    code=75
fi
rm -f "$VOXZOO_LAUNCHER_FILE"
exit "$code"
