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
stopped=0
# To the processes themselves: torchrun would kill them 30 s after a signal to it, whether they have saved or not.
trap 'stopped=1; kill -USR1 $(pgrep -P "$child") 2>/dev/null' TERM USR1

torchrun --nnodes="${NODES:-1}" --node-rank="${NODE_RANK:-0}" --nproc-per-node="${PROCESSES:-gpu}" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${MASTER_PORT:-29500}" \
    -m voxzoo.tasks.cli train "$@" &
child=$!
wait "$child"
code=$?
while kill -0 "$child" 2>/dev/null; do  # a signal ends `wait` before the processes have saved
    wait "$child"
    code=$?
done

if [ "$stopped" -eq 1 ] && [ "$code" -ne 0 ]; then
    exit 75
fi
exit "$code"
