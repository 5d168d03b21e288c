"""The workflow on a SLURM cluster: after kills of jobs and Snakemake, the local tables.

The cluster is two nodes on this machine's loopback: Debian's slurmctld, slurmd and munge, started as root.
Minutes; off by default: make cluster-test, or pytest -m cluster.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from test_workflow import SNAKEMAKE, tables, tiny_experiment

from interp.runs.config import PROJECT_ROOT

pytest.importorskip("snakemake_executor_plugin_slurm")
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


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[None]:
    """While open, the cluster is up and SLURM's commands reach it."""
    folder = tmp_path_factory.mktemp("slurm")
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


pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")]
ON_CLUSTER = [sys.executable, "-m", "snakemake", "--profile", "profiles/slurm", "--rerun-triggers", "mtime",
              "--rerun-incomplete", "--latency-wait", "10", "--slurm-init-seconds-before-status-checks", "2",
              "--seconds-between-status-checks", "2"]
PATIENCE = 900  # seconds
STATE = "Results/Train_Algorithmic_Models/Disambiguation/state_model_seed_0_lr_0.001.pt"


def on_cluster(arguments: list[str], log: Path, *options: str) -> subprocess.Popen:
    return subprocess.Popen([*ON_CLUSTER, *options, *arguments, "shards=2"], cwd=PROJECT_ROOT,
                            stdout=open(log, "a"), stderr=subprocess.STDOUT, start_new_session=True)


def wait_for(what, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def jobs_left() -> str:
    return output_of("squeue", "--noheader", "--states=RUNNING,PENDING")


def scripts_at_work(folder: Path, name: str) -> list[psutil.Process]:
    """The processes of a script on configs of a folder, on whatever node."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(word.endswith(name) for word in words[:2]) and any(str(folder) in word for word in words):
            found.append(process)
    return found


def test_after_a_job_and_snakemake_are_killed_the_tables_are_the_local_ones(slurm, tmp_path):
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    assert subprocess.run([*SNAKEMAKE, *tiny_experiment(whole)], cwd=PROJECT_ROOT).returncode == 0
    arguments = tiny_experiment(killed)

    process = on_cluster(arguments, log)
    wait_for((killed / STATE).exists, process)
    for victim in scripts_at_work(killed, "train_algorithmic_models.py"):  # a node's job dies
        victim.kill()
    # the job is tried again; in the middle of the methods Snakemake dies, and its jobs continue to their end
    wait_for((killed / "Results/Disambiguation/DAS/a2/results.csv").exists, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert jobs_left()
    deadline = time.monotonic() + PATIENCE
    while jobs_left():
        assert time.monotonic() < deadline
        time.sleep(1)
    assert not (killed / "Results/Disambiguation/figures/there_and_used.png").exists()
    assert subprocess.run([*SNAKEMAKE, *arguments, "--unlock"], cwd=PROJECT_ROOT).returncode == 0
    process = on_cluster(arguments, log)
    assert process.wait(PATIENCE) == 0, log.read_text()
    assert (killed / "Results/Disambiguation/figures/there_and_used.png").exists()
    jobs = output_of("squeue", "--states=all", "--noheader", "--format=%T").split()
    assert "FAILED" in jobs and jobs.count("COMPLETED") > 10

    ends = tables(killed)
    assert len(ends) > 20 and ends == tables(whole)


@pytest.mark.parametrize("limit, why", [
    ("mem_mb=100", "Exceeded job memory limit"), ("runtime=1", "DUE TO TIME LIMIT")])
def test_a_job_out_of_memory_or_over_its_time_is_named_with_its_log_and_can_go_on(slurm, tmp_path, limit, why):
    arguments = tiny_experiment(tmp_path)
    if limit.startswith("runtime"):  # SLURM's limits are whole minutes
        config = tmp_path / "configs/Train_Algorithmic_Models/Disambiguation/a2_minus_b2.yaml"
        config.write_text(config.read_text().replace("num_epochs: 60", "num_epochs: 4000000"))
    log, rule = tmp_path / "log", "train_Disambiguation"
    process = on_cluster(arguments, log, "--retries", "0", "--set-resources",
                         f"{rule}:{limit}", "--until", rule)
    assert process.wait(PATIENCE) != 0
    text = log.read_text()
    assert f"Error in rule {rule}" in text and "SLURM-job '" in text, text
    job_log = Path(re.search(r"log: (\S+slurm_logs\S+\.log)", text)[1])
    assert why in job_log.read_text()
    if limit.startswith("mem_mb"):
        assert on_cluster(arguments, log, "--until", rule).wait(PATIENCE) == 0, log.read_text()
        assert (tmp_path / "Results/Train_Algorithmic_Models/Disambiguation/results.csv").exists()
