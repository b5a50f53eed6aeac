"""A real Slurm on this machine: a controller and nodes of a folder of their own, on loopback, ended with the block.

It needs root, the Debian packages slurm-wlm and munge, and a hostname that means this machine.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

SBIN = os.pathsep.join(["/usr/sbin", "/sbin"])
NODE = "SAE_MATCH_TEST_NODE"
"""Variable of every process of a node."""
CONF = """\
ClusterName=test
SlurmctldHost={controller}({address})
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=10
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/ctl.pid
SlurmdPidFile={folder}/spool/%n.pid
SlurmctldLogFile={folder}/ctl.log
SlurmdLogFile={folder}/%n.log
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1000
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
KillWait=5
SlurmdTimeout=10
MessageTimeout=20
InactiveLimit=0
ReturnToService=2
MaxArraySize=5
"""


def why_not() -> str | None:
    """Why no cluster can be started here; None where one can."""
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if _which(name) is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "Slurm's daemons start jobs as root"
    try:
        socket.gethostbyname(socket.gethostname())
    except OSError:
        return f"the name {socket.gethostname()} is not known here: write it into /etc/hosts"
    return None


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}{os.pathsep}{SBIN}")


def wait_until(what: str, true: Callable[[], object], seconds: float = 60) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: it does not come true.
    """
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.2)


class Cluster:
    """Where a cluster lies, and what can befall it.

    Attributes:
        environment: variables with which Slurm's commands find it.
        names: whether nodes have hostnames of their own (namespaces are allowed here).
    """

    def __init__(self, folder: Path, nodes: Sequence[str] = ("n1", "n2")) -> None:
        self.folder, self.nodes = folder, nodes
        hidden = ("SLURM_", "SBATCH_", "SUBMITIT_")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        self.environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:{SBIN}"}
        probe = subprocess.run(["unshare", "--uts", "--mount", "hostname", "x"], capture_output=True, check=False)
        self.names = probe.returncode == 0
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def ask(self, *command: str) -> str:
        """What a command of Slurm's prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout

    def state(self, job: str) -> str:
        """Slurm's state of a job (23_1), also when it is over."""
        return self.ask("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T").strip()

    def up(self) -> None:
        """Start munge, the controller and the nodes."""
        for name in ("munge", "state", "spool"):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        options = {"key-file": key, "seed-file": self.folder / "munge" / "seed", "log-file": self.folder / "munge.log"}
        options |= {"socket": self.folder / "munge" / "socket", "pid-file": self.folder / "munge" / "pid"}
        self._start("munged", "munged", "--foreground", "--force", *(f"--{k}={options[k]}" for k in options))
        wait_until("munged", (self.folder / "munge" / "socket").exists)
        self._configure()
        self.start("ctl")
        wait_until("slurmctld", lambda: "UP" in self.ask("scontrol", "ping"))
        for node in self.nodes:
            self.start(node)
        wait_until("idle nodes", lambda: len(self.ask("sinfo", "-hN", "-tidle").splitlines()) == len(self.nodes))

    def _configure(self) -> None:
        host = socket.gethostname().partition(".")[0]
        address = "127.0.0.1" if self.names else socket.gethostbyname(host)
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost {host} ctl {' '.join(self.nodes)}\n")
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")  # wants no systemd
        ports = _free_ports(address, 1 + len(self.nodes))
        text = CONF.format(
            controller="ctl" if self.names else host,
            address=address, port=ports[0], user=psutil.Process().username(), folder=self.folder,
        )  # fmt: skip
        for node, port in zip(self.nodes, ports[1:], strict=True):
            name = node if self.names else host
            text += f"NodeName={node} NodeHostname={name} NodeAddr={address} Port={port} CPUs=8 RealMemory=64000\n"
        text += f"PartitionName=cpu Nodes={','.join(self.nodes)} Default=YES MaxTime=UNLIMITED\n"
        (self.folder / "slurm.conf").write_text(text)

    def _start(self, name: str, *command: str) -> None:
        inside = [
            "unshare",
            "--uts",
            "--mount",
            "sh",
            "-c",
            'hostname "$1"; mount --bind "$2" /etc/hosts; shift 2; exec "$@"',
        ]
        if self.names and name != "munged":
            command = (*inside, "-", name, str(self.folder / "hosts"), *command)
        with (self.folder / f"{name}.out").open("ab") as log:
            self._started[name] = subprocess.Popen(
                command, env={**self.environment, NODE: name}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def start(self, node: str) -> None:
        """Start a node, or the controller (ctl), also again after a crash."""
        self._start(node, *(("slurmctld", "-D") if node == "ctl" else ("slurmd", "-D", "-N", node)))

    def crash(self, node: str, *, jobs: bool = True) -> None:
        """Kill a node's daemon and (`jobs`) everything that runs there, at once."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                variables = process.environ()
                mine = variables.get("SLURM_CONF") == self.environment["SLURM_CONF"]
                if mine and node in (variables.get(NODE), variables.get("SLURMD_NODENAME")):
                    found.append(process)
                    if (parent := process.parent()) is not None and parent.name() == "slurmstepd":
                        found.append(parent)  # which has no environment to look at
        if not jobs:
            found = [process for process in found if process.name() == "slurmd"]
        for number in (signal.SIGSTOP, signal.SIGKILL):  # none must tell the controller of another's end
            for process in found:
                with suppress(psutil.Error):
                    process.send_signal(number)
        if node in self._started:
            self._started.pop(node).wait()

    def processes(self, job: str) -> list[psutil.Process]:
        """The Python processes of a job (23_1), on any node."""
        array, _, task = job.partition("_")
        wanted = {
            "SLURM_CONF": self.environment["SLURM_CONF"],
            "SLURM_ARRAY_JOB_ID": array,
            "SLURM_ARRAY_TASK_ID": task,
        }
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.name().startswith("python") and wanted.items() <= process.environ().items():
                    found.append(process)
        return found

    def down(self) -> None:
        """End every job and daemon that was started here."""
        for name in [*self.nodes, "ctl", "munged"]:
            self.crash(name)


def _free_ports(address: str, count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind((address, 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def cluster(folder: Path, nodes: Sequence[str] = ("n1", "n2")) -> Iterator[Cluster]:
    """A cluster while the block runs."""
    found = Cluster(folder, nodes)
    try:
        try:
            found.up()
        except (OSError, TimeoutError) as error:  # a machine whose rules the daemons do not meet
            said = [file.read_text(errors="replace").strip()[-300:] for file in sorted(folder.glob("*.out"))]
            pytest.skip(f"Slurm is installed, but does not start here: {error}; {' | '.join(said)}")
        yield found
    finally:
        found.down()
