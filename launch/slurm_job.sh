#!/usr/bin/env bash
# The batch script of slurm.sh: trains with the flags it is given, a process for
# each task of the job, and goes back to the queue to go on if it was stopped or lost a task.

set -uo pipefail
lost=69 stopped=75 # dash_jax.main's exit codes that say: call again

# JAX finds the tasks by Slurm's variables, and gives each the GPU of its number
# on the node. A task that ended has its reasons, also one that was stopped: the
# others have five minutes to end as well.
srun --kill-on-bad-exit=0 --wait=300 --label python -u -m dash_jax.main "$@"
code=$?
if ((code == lost || code == stopped)); then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
