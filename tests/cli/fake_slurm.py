"""Just enough of Slurm for submitit: `sbatch` runs a job array on this machine, one task after another."""

from __future__ import annotations

import sys
from pathlib import Path

_SBATCH = """
import os, pathlib, re, subprocess, sys
script = pathlib.Path(sys.argv[1])
last = int(re.search(r"--array=0-(\\d+)", script.read_text())[1])
print("Submitted batch job 4242", flush=True)
if os.fork():
    sys.exit()
os.setsid()
quiet = open(os.devnull, "r+")
for stream in (0, 1, 2):
    os.dup2(quiet.fileno(), stream)
for task in range(last + 1):
    slurm = {"JOB_ID": 4242 + task, "ARRAY_JOB_ID": 4242, "ARRAY_TASK_ID": task, "NTASKS": 1, "JOB_NUM_NODES": 1,
             "NODEID": 0, "PROCID": 0, "LOCALID": 0, "JOB_NODELIST": "localhost"}
    subprocess.run(["bash", str(script)], env={**os.environ, **{f"SLURM_{k}": str(v) for k, v in slurm.items()}})
"""
_SRUN = """
import os, subprocess, sys
arguments = sys.argv[1:]
output = arguments[arguments.index("--output") + 1]
for mark, name in (("%A", "ARRAY_JOB_ID"), ("%a", "ARRAY_TASK_ID"), ("%t", "PROCID"), ("%j", "JOB_ID")):
    output = output.replace(mark, os.environ["SLURM_" + name])
with open(output, "w") as log:
    sys.exit(subprocess.run(arguments[arguments.index("--output") + 2:], stdout=log, stderr=log).returncode)
"""
_SACCT = 'print("JobID|State|NodeList")'


def install(directory: Path) -> Path:
    """Write the commands into a folder that is to come first in PATH, and return it."""
    directory.mkdir()
    for name, code in (("sbatch", _SBATCH), ("srun", _SRUN), ("sacct", _SACCT)):
        path = directory / name
        path.write_text(f"#!{sys.executable}\n{code}")
        path.chmod(0o755)
    return directory
