"""Jobs of Slurm: the script, and its life.

The script starts one launcher a machine with srun. Before the time limit Slurm signals the script
alone, which passes that on to every step; ranks save and end with 75, and the script has the job
queued again.
"""

import shlex
import sys

from conf.clusters import SlurmCluster, cluster_gpus
from conf.errors import Preempted
from launch.jobs.node import ADDRESS, variables
from launch.local import LDM

# Longer than a launcher waits for its ranks to save: Slurm then ends machines that others wait for.
SECONDS_AFTER_FIRST = 960

# One task of an array has the array's own number as its job's: that one names all of them.
_ME = "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"
_MEET = 'scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1'
# A `wait` that a signal ends says nothing of the step: it is asked again, and once more at the end.
# A step that the signal killed before it could answer has to go on as well. SIGTERM is a cancelled
# job, or Slurm's preemption, which queues by itself.
_LIFE = f"""\
step=$!
while wait "$step"; kill -0 "$step" 2>/dev/null; do :; done
wait "$step"
code=$?
if [ "$code" = {Preempted.exit_code} ] || {{ [ "$told" = USR1 ] && [ "$code" -gt 128 ]; }}; then
  [ "$told" = TERM ] || scontrol requeue "$me"
fi
exit "$code"
"""


def slurm_script(name: str, arguments: list[str], code: str, cluster: SlurmCluster) -> str:
    """The script of a job.

    Args:
        name: Of the job.
        arguments: Of `ldm`; each reaches it as it is here.
        code: What is known of the submitter's code, packed, or nothing.
        cluster: Where it runs.
    """
    options = [*_options(name, cluster), *cluster.flags]
    address = shlex.quote(cluster.address) if cluster.address else f'"$({_MEET})"'
    told = variables(cluster, code)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in told.items()]
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *(f"#SBATCH {option}" for option in options),
            *exports,
            f"export {ADDRESS}={address}",
            f"me={_ME}",
            "me=${me:-$SLURM_JOB_ID}",
            "told=",
            "trap 'told=USR1; scancel --signal=USR1 \"$me\"' USR1",
            "trap 'told=TERM' TERM",
            f"{shlex.join(_step(arguments, cluster))} &",
            _LIFE,
        ]
    )


def _options(name: str, cluster: SlurmCluster) -> list[str]:
    values = {
        "job-name": name,
        "nodes": cluster.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": cluster.cpus,
        "mem": cluster.memory,
        "gpus-per-node": cluster_gpus(cluster) or None,
        "partition": cluster.partition,
        "account": cluster.account,
        "constraint": cluster.constraint,
        "time": cluster.time,
        "array": f"0-{cluster.workers - 1}" if cluster.workers > 1 else None,
        "output": f"{cluster.logs}/%x-{'%A_%a' if cluster.workers > 1 else '%j'}.log",
        # A name that is made here is that of a run, which two jobs at a time would both write.
        "dependency": "singleton" if cluster.name is None and cluster.workers == 1 else None,
        "open-mode": "append",
        "signal": f"B:USR1@{cluster.stop_seconds}",
    }
    given = [f"--{name}={value}" for name, value in values.items() if value is not None]
    return [*given, "--requeue"]


def _step(arguments: list[str], cluster: SlurmCluster) -> list[str]:
    options = {
        "kill-on-bad-exit": 0,  # others may still be saving
        "wait": SECONDS_AFTER_FIRST,
        "cpus-per-task": cluster.cpus,  # srun does not take it from sbatch
        "container-image": cluster.container,
        "container-mounts": ",".join(cluster.container_mounts) or None,
    }
    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    program = ["ldm"] if cluster.container else [sys.executable, *LDM]
    return ["srun", *given, *program, *arguments]
