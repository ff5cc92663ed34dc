"""`catlip slurm`: an sbatch file that survives the end of its time: warned, it saves, and queues itself again."""

import shlex
from dataclasses import dataclass

from catlip.errors import UsageError

FILE = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={gpus}
#SBATCH --gpus-per-node={gpus}
#SBATCH --cpus-per-task={cpus}
#SBATCH --time={time}
#SBATCH --signal=B:USR1@{warn}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={name}-%j.out
{partition}
# One process a GPU; catlip finds the others by SLURM's own variables. {warn} s before the time is up SLURM warns this
# script, which passes it on: the run saves at its next step, and the job goes back into the queue. The same command
# goes on with the very next sample.
warned=0
trap 'warned=1; kill -USR1 "$step"' USR1
srun --kill-on-bad-exit=1 {command} &
step=$!
wait "$step"; code=$?
if [ "$warned" = 1 ]; then
    wait "$step"; code=$?
    [ "$code" = 0 ] && scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


@dataclass(kw_only=True, slots=True)
class SlurmConfig:
    """Print an sbatch file. What follows -- is the command: catlip slurm --nodes 4 -- pretrain RECIPE ..."""

    command: str = ""  # the catlip command to run, without the word catlip
    nodes: int = 1
    gpus: int = 8  # of each node
    cpus: int = 12  # of each GPU
    time: str = "24:00:00"  # of one job; a longer run goes on in the next
    warn: int = 120  # seconds before the end at which the run is told to save
    partition: str | None = None
    name: str = "catlip"


def slurm(config: SlurmConfig) -> str:
    """The file's text. Raises UsageError without a command."""
    words = shlex.split(config.command)
    if not words:
        raise UsageError("name the command after --: catlip slurm --nodes 4 --gpus 8 -- pretrain RECIPE --data ...")
    if min(config.nodes, config.gpus, config.cpus) < 1 or config.warn < 10:
        raise UsageError("--nodes, --gpus and --cpus are 1 or more, --warn 10 s or more")
    for value in (config.time, config.partition or "", config.name):
        if any(c.isspace() for c in value):
            raise UsageError(f"{value!r} cannot stand in an sbatch file: it holds white space")
    return FILE.format(
        name=config.name,
        nodes=config.nodes,
        gpus=config.gpus,
        cpus=config.cpus,
        time=config.time,
        warn=config.warn,
        partition=f"#SBATCH --partition={config.partition}\n" if config.partition else "",
        command=shlex.join(["catlip", *words]),
    )
