"""A SLURM cluster of two nodes on this machine's loopback: Debian's slurmctld, slurmd and munge, started as root."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PLACE = Path("/etc/slurm")  # where SLURM looks; Snakemake's plugin hides variables that say otherwise from its jobs
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo", "scancel")
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=86400
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=1 RealMemory=16000 Gres=gpu:1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=1 RealMemory=16000 Gres=gpu:1
PartitionName=all Nodes=n1,n2 Default=YES State=UP
"""


def why_not() -> str:
    """Why no cluster can be started here, or nothing."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if missing:
        return f"{', '.join(missing)} not found (apt install slurmctld slurmd slurm-client munge)"
    if (PLACE / "slurm.conf").exists():
        return f"{PLACE} has the configuration of a cluster already"
    return "" if os.geteuid() == 0 else "the nodes' daemons need root"


@contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """While open, the cluster is up and SLURM's commands reach it."""
    for name in ("state", "spool.n1", "spool.n2", "munge"):
        (folder / name).mkdir(parents=True)
    port, first, second = free_ports(3)
    (folder / "slurm.conf").write_text(CONFIG.format(host=socket.gethostname().split(".")[0], folder=folder, port=port,
                                                     first=first, second=second))
    (folder / "gres.conf").write_text("NodeName=n[1-2] Name=gpu File=/dev/null\n")
    munge = folder / "munge"
    key = munge / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    PLACE.mkdir(exist_ok=True)
    links = [PLACE / name for name in ("slurm.conf", "gres.conf")]
    for link in links:
        link.unlink(missing_ok=True)  # left by a test that was killed
        link.symlink_to(folder / link.name)
    commands = (["munged", "--force", "--foreground", f"--socket={munge}/socket", f"--key-file={key}",
                 f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed"],
                ["slurmctld", "-D", "-i"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"])
    daemons = []
    try:
        for command in commands:
            daemons.append(subprocess.Popen(command, stdout=subprocess.DEVNULL,
                                            stderr=subprocess.DEVNULL, start_new_session=True))
            time.sleep(1)
        deadline = time.monotonic() + 60
        while output_of("sinfo", "--noheader", "--format=%T %D") != "idle 2":
            assert time.monotonic() < deadline, (folder / "slurmctld.log").read_text()
            time.sleep(0.5)
        yield
    finally:
        output_of("scancel", "--user=root")
        time.sleep(1)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGKILL)
            daemon.wait()
        for link in links:
            link.unlink()


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()
