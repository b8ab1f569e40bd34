"""How the stages of one run share the cores. Imports no torch: a command asks before it does."""

from __future__ import annotations

import os

from omegaconf import DictConfig

_set_here: set[str] = set()  # variables of this process's environment that the user did not set


def launched_processes() -> int:
    """How many processes torchrun or srun started this command as; 1 where neither did."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ.get("WORLD_SIZE", 1))
    return int(os.environ.get("SLURM_NTASKS", 1)) if "SLURM_PROCID" in os.environ else 1


def stages_at_a_time(config: DictConfig) -> int:
    """How many stages may run side by side. Processes that torchrun or srun started take each stage together, one after
    the other."""
    return 1 if launched_processes() > 1 else max(int(config.stage_jobs), 1)


def environment_of_stage(beside: int) -> dict[str, str]:
    """The environment of a stage, one of up to `beside` at a time, which share the cores."""
    environment = {name: value for name, value in os.environ.items() if name not in _set_here}
    if beside > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // beside, 1)))
        # Threads that spin while they wait take the core from those they wait for: on two busy cores a step of the
        # quickstart took 12 s with two threads that spin, and 0.5 s with two that sleep.
        environment.setdefault("OMP_WAIT_POLICY", "passive")
    return environment


def import_as_a_stage(config: DictConfig) -> None:
    """Call it before torch is imported in the process that stages are forked from: it then has the threads of one."""
    import_beside(stages_at_a_time(config))


def import_beside(jobs: int) -> None:
    """The same for a process from which up to `jobs` trainings at a time are forked."""
    for name, value in environment_of_stage(jobs).items():
        if os.environ.get(name) != value:
            _set_here.add(name)
            os.environ[name] = value
