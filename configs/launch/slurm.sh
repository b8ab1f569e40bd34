#!/bin/bash
# `voxzoo train` on a Slurm cluster, put back into the queue until it is done. Copy it, set the sizes, and submit it with
# the words of `voxzoo train` behind it; what differs from one job to the next can also stand before it:
#
#   sbatch --nodes=2 slurm.sh trainer=multinode experiment=quickstart root=/shared/runs
#
# Two minutes before the time limit Slurm sends SIGUSR1 to the processes: they finish the step, save it and exit with 75,
# and the job is queued again. The same command goes on where it stopped, on as many processes as it then gets. A job
# that is preempted is stopped by SIGTERM in the same way and queued again by Slurm (--requeue); one that was cancelled
# is not. `root` must be a folder that all machines share.
#SBATCH --job-name=voxzoo
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=voxzoo-%j.log

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# One task for each GPU (--ntasks-per-node = --gpus-per-node). When one ends, the others have a minute to end too.
# Between 22.05 and 23.02 srun does not take the number of cores from the job.
srun --kill-on-bad-exit=0 --wait=60 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} voxzoo train "$@"
code=$?

# 75: stopped and saved. 138: SIGUSR1 came before Python had begun.
if { [ "$code" -eq 75 ] || [ "$code" -eq 138 ]; } && scontrol show job "$SLURM_JOB_ID" | grep -q 'JobState=RUNNING'; then
    echo "voxzoo: job $SLURM_JOB_ID is queued again" >&2
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
