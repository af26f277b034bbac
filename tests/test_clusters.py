"""Recipes for clusters: keys, job scripts, the manifest, ssh.sh against a real sshd, and a real Slurm of one node where there is one."""
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml
from distributed import Client
from distributed.cli.dask_scheduler import main as dask_scheduler
from distributed.cli.dask_worker import main as dask_worker

from processes import free_port, until

from ich_study.clusters import bundled_clusters, check_cluster, cost_on_paper, job_script, load_cluster, slot_environment, start_cluster, wall_hours
from ich_study.schema import StudyError
from ich_study.slots import THREADS

FOLDER = Path(__file__).resolve().parent.parent/"nbs"/"study"/"clusters"
SSH = FOLDER/"ssh.sh"
GOOD = {"kind": "slurm", "slots": 2, "cores": 4, "memory_gb": 16, "walltime": "01:30:00"}
SBIN = f"{os.environ['PATH']}:/usr/sbin:/sbin"
has = lambda *tools: all(shutil.which(t, path=SBIN) for t in tools)


def refused(call):
    with pytest.raises(StudyError) as e: call()
    assert "\n" not in str(e.value)
    return str(e.value)


@contextmanager
def daemon(*argv, ready=lambda: True, **kwargs):
    """A program in the foreground, ended with the block."""
    process = subprocess.Popen([shutil.which(argv[0], path=SBIN), *map(str, argv[1:])], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **kwargs)
    try:
        until(lambda: process.poll() is not None or ready())
        assert process.poll() is None, f"{argv[0]} ended at once"
        yield process
    finally:
        process.terminate()
        process.wait(10)


# ---- keys

@pytest.mark.parametrize("name", ["slurm", "pbs"])
def test_bundled_recipe_is_read_and_says_every_key(name):
    assert list(bundled_clusters()) == ["pbs", "slurm"]
    cluster = load_cluster(name)
    assert cluster == load_cluster(FOLDER/f"{name}.yml") and cluster["kind"] == name
    assert set(yaml.safe_load((FOLDER/f"{name}.yml").read_text())) == set(cluster)  # the file is its own documentation


@pytest.mark.parametrize("wrong, said", [
    ({"slot": 2}, "'slot' is no key"), ({"kind": "sge"}, "kind should be one of ['slurm', 'pbs']"), ({"kind": ["slurm"]}, "kind should be"),
    ({"slots": 0}, "[least, most]"), ({"slots": True}, "slots"), ({"slots": [3, 2]}, "slots"), ({"slots": [0, 0]}, "slots"), ({"slots": [1, 2, 3]}, "slots"), ({"slots": "2"}, "slots"),
    ({"cores": 0}, "cores should be a whole number"), ({"cores": 1.5}, "1.5"), ({"cores": None}, "None"), ({"memory_gb": "16GB"}, "'16GB'"),
    ({"gpus": 2}, "0 or 1"), ({"gpus": True}, "0 or 1"), ({"walltime": 5400}, "in quotes"), ({"walltime": "1:90:00"}, "walltime"), ({"walltime": "00:00:00"}, "walltime"),
    ({"queue": "gpu -x"}, "queue"), ({"queue": "gpu\n#SBATCH -x"}, "queue"), ({"queue": None}, "queue"), ({"account": "a;b"}, "account"), ({"python": "env/bin/python"}, "absolute"),
    ({"interface": "ib0 --x"}, "interface"), ({"local_folder": "/a b"}, "local_folder"), ({"local_folder": "$(id)"}, "local_folder"), ({"setup": "module load cuda"}, "list of lines"),
    ({"setup": ["a\nb"]}, "setup"), ({"directives": ["#SBATCH --x"]}, "without its #SBATCH"), ({"directives": [1]}, "directives"),
])
def test_wrong_key_is_refused_with_its_name(wrong, said):
    text = refused(lambda: check_cluster(GOOD | wrong, "site.yml"))
    assert text.startswith("site.yml: ") and said in text


@pytest.mark.parametrize("key", list(GOOD))
def test_missing_key_is_refused(key):
    assert f"{key} is missing" in refused(lambda: check_cluster({k: v for k, v in GOOD.items() if k != key}, "site.yml"))


def test_files_that_are_no_recipe_are_refused(tmp_path):
    for text, said in (("a: [", "not YAML"), ("", "mapping"), ("[1]", "mapping"), ("walltime: 24:00:00\nkind: slurm\nslots: 1\ncores: 1\nmemory_gb: 1", "86400")):
        (tmp_path/"x.yml").write_text(text)
        assert said in refused(lambda: load_cluster(tmp_path/"x.yml"))
    assert "there are ['pbs', 'slurm']" in refused(lambda: load_cluster("kubernetes"))
    assert check_cluster(GOOD, "x")["setup"] == [] and check_cluster(GOOD | {"slots": [0, 3], "local_folder": "$TMPDIR/dask"}, "x")


# ---- job scripts

def parsed(script):
    """What bash would set, and what `dask worker` makes of its command line."""
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).returncode == 0
    words = shlex.split(script.strip().splitlines()[-1])
    assert words[1:3] == ["-m", "distributed.cli.dask_worker"]
    exports = dict(line.removeprefix("export ").split("=", 1) for line in script.splitlines() if line.startswith("export "))
    return words[0], exports, dask_worker.make_context("dask worker", words[3:]).params


def test_slurm_script():
    cluster = check_cluster(GOOD | {"gpus": 1, "queue": "long", "account": "lab", "python": "/my env/bin/python", "interface": "lo", "local_folder": "$TMPDIR",
                                    "setup": ["module load cuda"], "directives": ["--constraint=a100"]}, "x")
    script = job_script(cluster, address="tcp://10.0.0.1:8786")
    heads = [l.removeprefix("#SBATCH ") for l in script.splitlines() if l.startswith("#SBATCH")]
    assert heads == ["-J ich-study", "-p long", "-A lab", "-n 1", "--cpus-per-task=4", "--mem=16G", "-t 01:30:00", "--gres=gpu:1", "--constraint=a100"]
    python, exports, worker = parsed(script)
    assert python == "/my env/bin/python" and exports == slot_environment(4, 1) and set(THREADS) < set(exports)
    assert worker["scheduler"] == "tcp://10.0.0.1:8786" and worker["resources"] == "slot=1,gpu=1,GB=16" and worker["nthreads"] == 1 and worker["dashboard"] is False
    assert worker["interface"] == "lo" and worker["local_directory"] == "$TMPDIR" and script.index("module load") < script.index("export ") < script.index("distributed")


def test_pbs_script():
    script = job_script(check_cluster(GOOD | {"kind": "pbs", "gpus": 1, "queue": "long", "account": "lab", "directives": ["-j oe"]}, "x"))
    heads = [l.removeprefix("#PBS ") for l in script.splitlines() if l.startswith("#PBS")]
    assert heads == ["-N ich-study", "-q long", "-A lab", "-l select=1:ncpus=4:mem=16gb:ngpus=1", "-l walltime=01:30:00", "-j oe"]
    python, exports, worker = parsed(script)
    assert python == sys.executable and worker["resources"] == "slot=1,gpu=1,GB=16" and "CUDA_VISIBLE_DEVICES" not in exports


def test_slot_without_a_gpu_hides_those_of_the_node_and_asks_for_none(tmp_path):
    script = job_script(check_cluster(GOOD, "x"), logs=tmp_path/"logs")
    assert "gres" not in script and parsed(script)[1]["CUDA_VISIBLE_DEVICES"] == "-1" and parsed(script)[2]["resources"] == "slot=1,GB=16"
    assert f"-o {tmp_path}/logs/" in script and "parts" not in script and "spaces" in refused(lambda: job_script(check_cluster(GOOD, "x"), logs="/a b"))


def test_a_machine_without_the_queue_is_told(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "sbatch is not on this machine" in refused(lambda: start_cluster(check_cluster(GOOD, "x")))
    assert "qsub is not on this machine" in refused(lambda: start_cluster(load_cluster("pbs")))


# ---- Kubernetes

def test_manifest_field_by_field():
    volume, policy, dask = yaml.safe_load_all((FOLDER/"kubernetes.yml").read_text())
    assert (volume["apiVersion"], volume["kind"], volume["spec"]["accessModes"]) == ("v1", "PersistentVolumeClaim", ["ReadWriteMany"])
    own = {"matchLabels": {"dask.org/cluster-name": dask["metadata"]["name"]}}
    assert (policy["apiVersion"], policy["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy") and policy["spec"]["policyTypes"] == ["Ingress"]
    assert policy["spec"]["podSelector"] == own and policy["spec"]["ingress"] == [{"from": [{"podSelector": own}]}]
    assert (dask["apiVersion"], dask["kind"], set(dask["spec"])) == ("kubernetes.dask.org/v1", "DaskCluster", {"worker", "scheduler"})
    (worker,), (scheduler,) = (dask["spec"][part]["spec"]["containers"] for part in ("worker", "scheduler"))
    for part, container in (("worker", worker), ("scheduler", scheduler)):
        assert container["name"] == part and container["image"] == worker["image"]
        (mount,), (v,) = container["volumeMounts"], dask["spec"][part]["spec"]["volumes"]
        assert mount["name"] == v["name"] and v["persistentVolumeClaim"]["claimName"] == volume["metadata"]["name"]
        assert {"name": "ICH_STUDY_ROOT", "value": mount["mountPath"]} in container["env"]
    service, ports = dask["spec"]["scheduler"]["service"], {p["name"]: p["containerPort"] for p in scheduler["ports"]}
    assert service["type"] == "ClusterIP" and service["selector"] == own["matchLabels"] | {"dask.org/component": "scheduler"}
    assert {p["targetPort"]: p["port"] for p in service["ports"]} == ports == {"tcp-comm": 8786, "http-dashboard": 8787}
    assert scheduler["readinessProbe"]["httpGet"]["port"] in ports


def test_commands_of_the_manifest_are_those_of_dask():
    *_, dask = yaml.safe_load_all((FOLDER/"kubernetes.yml").read_text())
    (worker,), (scheduler,) = (dask["spec"][part]["spec"]["containers"] for part in ("worker", "scheduler"))
    assert worker["args"][:2] == ["dask", "worker"] and scheduler["args"][:2] == ["dask", "scheduler"] and all(isinstance(a, str) for a in worker["args"] + scheduler["args"])
    given = dask_worker.make_context("dask worker", worker["args"][2:]).params
    assert given["resources"] == "slot=1,gpu=1,GB=32" and given["nthreads"] == 1 and given["name"] == "$(DASK_WORKER_NAME)" and given["scheduler"] is None
    assert dask_scheduler.make_context("dask scheduler", scheduler["args"][2:]).params["port"] == "8786"
    env, sizes = {e["name"]: e["value"] for e in worker["env"]}, worker["resources"]
    assert slot_environment(int(sizes["limits"]["cpu"]), 1).items() <= env.items() and sizes["limits"] == sizes["requests"] | {"nvidia.com/gpu": "1"}
    assert sizes["limits"]["memory"] == "32Gi" and given["memory_limit"] == "32GiB"


# ---- ssh.sh

def run_ssh(*argv, **kwargs): return subprocess.run(["sh", SSH, *map(str, argv)], capture_output=True, text=True, stdin=subprocess.DEVNULL, **kwargs)


def test_ssh_script_parses_and_helps():
    for shell in ("sh", "bash"): assert subprocess.run([shell, "-n", SSH], capture_output=True).returncode == 0
    done, text = run_ssh("--help"), SSH.read_text()
    assert done.returncode == 0 and done.stdout.startswith("usage: ssh.sh --host") and not done.stderr
    assert set(re.findall(r"--[a-z]+(?=[|)])", text.split("usage: ")[0] + text.split("TEXT\n")[-1])) <= set(re.findall(r"--[a-z]+", done.stdout))
    assert all(name in text for name in THREADS)


@pytest.mark.parametrize("argv, hosts, said", [
    ((), None, "a file of hosts is wanted"), (("--host",), None, "--host needs a value"), (("--host", "10.0.0.1", "--cord", "2"), "a", "unknown option --cord"),
    ((), "a", "--host should be an address"), (("--host", "a;b"), "a", "--host should be an address"), (("--host", "h", "--cores", "two"), "a", "--cores should be a whole number, but is 'two'"),
    (("--host", "h", "--gpus", "2"), "a", "--gpus should be 0 or 1"), (("--host", "h"), "# none\n", "names no machine"), (("--host", "h"), "-oProxyCommand=x", "no name of a machine"),
    (("--host", "h"), "a$(id) 2", "no name of a machine"), (("--host", "h"), "a two", "whole number, but is 'two'"), (("--host", "h"), "a 1 2", "'2' came after"),
    (("--host", "h", "other"), "a", "one file of hosts is wanted"), (("--host", "h", "--gb", "1 2"), "a", "--gb should be a whole number"),
])
def test_ssh_script_refuses_wrong_words(tmp_path, argv, hosts, said):
    if hosts is not None: (tmp_path/"hosts").write_text(hosts)
    done = run_ssh(*argv, *([tmp_path/"hosts"] if hosts is not None else []))
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


@pytest.fixture(scope="module")
def sshd(tmp_path_factory):
    """An ssh server of one's own on 127.0.0.1; the command that reaches it."""
    if not has("sshd", "ssh-keygen"): pytest.skip("no sshd is installed")
    folder, port = tmp_path_factory.mktemp("sshd"), free_port()
    for key in ("host", "me"): subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder/key], check=True)
    if os.getuid() == 0: Path("/run/sshd").mkdir(exist_ok=True)  # which sshd wants to be there
    (folder/"config").write_text(f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/me.pub\nStrictModes no\nUsePAM no\nPidFile none\n"
                                 "PasswordAuthentication no\nPermitRootLogin prohibit-password\n")
    def ready():
        with socket.socket() as s: return s.connect_ex(("127.0.0.1", port)) == 0
    with daemon("sshd", "-D", "-f", folder/"config", ready=ready):
        yield f"ssh -F none -p {port} -i {folder}/me -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"


ASK = """
import os, sys
from distributed import Client
with Client(os.environ["DASK_SCHEDULER_ADDRESS"], timeout=30) as client:
    client.wait_for_workers(2, timeout=60)
    print(sorted(client.run(lambda: (os.environ["OMP_NUM_THREADS"], os.environ["CUDA_VISIBLE_DEVICES"], os.getpid())).values()))
    print([w["resources"] for w in client.scheduler_info()["workers"].values()], sys.argv[1:])
raise SystemExit(7)
"""


def gone(port): return subprocess.run(["pgrep", "-f", f"dask_(worker|scheduler).*{port}"], capture_output=True).returncode == 1


def test_ssh_script_starts_workers_runs_a_command_and_leaves_nothing(sshd, tmp_path):
    port, odd = free_port(), tmp_path/"it's a $HOME"
    (tmp_path/"hosts").write_text("127.0.0.1 2  # two slots\n\n")
    (tmp_path/"ask.py").write_text(ASK)
    done = run_ssh("--host", "127.0.0.1", "--port", port, "--python", sys.executable, "--cores", 3, "--gpus", 1, "--gb", 2, "--local", odd, "--ssh", sshd, tmp_path/"hosts",
                   "--", sys.executable, tmp_path/"ask.py", "two words", timeout=90)
    assert done.returncode == 7, done.stderr[-2000:]
    assert "[('3', '0', " in done.stdout and "('3', '1', " in done.stdout and "'slot': 1.0, 'gpu': 1.0, 'GB': 2.0" in done.stdout and "['two words']" in done.stdout
    assert odd.is_dir()
    until(lambda: gone(port))


def test_ssh_script_that_is_stopped_leaves_nothing(sshd, tmp_path):
    (tmp_path/"hosts").write_text("127.0.0.1 1")
    scripts = {}
    for how in (signal.SIGINT, signal.SIGKILL):
        port = free_port()
        scripts[how] = port, subprocess.Popen(["sh", SSH, "--host", "127.0.0.1", "--port", str(port), "--python", sys.executable, "--ssh", sshd, tmp_path/"hosts"], stderr=subprocess.DEVNULL, start_new_session=True)
    for how, (port, script) in scripts.items():
        with Client(f"tcp://127.0.0.1:{port}", timeout=60) as client: client.wait_for_workers(1, timeout=60)
        script.send_signal(how)
        assert script.wait(20) == {signal.SIGINT: 130, signal.SIGKILL: -9}[how]
    until(lambda: all(gone(port) for port, _ in scripts.values()))


# ---- a real Slurm

@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A Slurm of one node with two GPUs that are no GPUs, in a folder of its own; it needs root, as Slurm and munge do where nothing is installed for them."""
    if not has("sbatch", "slurmctld", "slurmd", "munged"): pytest.skip("no Slurm is installed (slurm-wlm and munge in Debian)")
    if os.getuid(): pytest.skip("a Slurm of one's own needs root")
    folder, node, ports = tmp_path_factory.mktemp("slurm"), socket.gethostname().split(".")[0], (free_port(), free_port())
    for name in ("state", "spool", "munge"): (folder/name).mkdir()
    for above in (folder/"munge", *folder.parents): above.chmod(above.stat().st_mode | 0o111) if above.owner() == "root" else None  # munge wants its socket in reach of all
    (folder/"key").write_bytes(os.urandom(1024)), (folder/"key").chmod(0o400)
    (folder/"slurm.conf").write_text(f"""ClusterName=one
SlurmctldHost={node}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthInfo=socket={folder}/munge/socket
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
NodeName={node} NodeAddr=127.0.0.1 CPUs=8 RealMemory=64000 Gres=gpu:2
PartitionName=gpu Nodes={node} Default=YES
""")
    (folder/"gres.conf").write_text(f"NodeName={node} Name=gpu File=/dev/null\nNodeName={node} Name=gpu File=/dev/zero\n")
    (folder/"cgroup.conf").write_text("CgroupAutomount=no\n")
    env, m = os.environ | {"SLURM_CONF": str(folder/"slurm.conf")}, folder/"munge"
    idle = lambda: b"idle" in subprocess.run(["sinfo", "-h"], env=env, capture_output=True).stdout
    with ExitStack() as stack:
        stack.enter_context(daemon("munged", "--foreground", "--force", f"--key-file={folder}/key", f"--socket={m}/socket", f"--pid-file={m}/pid", f"--log-file={m}/log",
                                   f"--seed-file={m}/seed", ready=(m/"socket").exists))
        stack.enter_context(daemon("slurmctld", "-D", env=env))
        stack.enter_context(daemon("slurmd", "-D", "-N", node, env=env, ready=idle))
        yield folder


def test_slurm_runs_the_jobs_and_replaces_one_that_is_cancelled(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(slurm/"slurm.conf"))
    import dask
    cluster = check_cluster(GOOD | {"cores": 2, "memory_gb": 2, "gpus": 1, "queue": "gpu", "walltime": "00:05:00", "local_folder": str(tmp_path)}, "x")
    assert "invalid partition" in refused(lambda: start_cluster(cluster | {"queue": "nope"}))
    queue = lambda *more: subprocess.run(["squeue", "-h", "-o", "%i", *more], capture_output=True, text=True).stdout.split()
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"}), start_cluster(cluster, host="127.0.0.1", logs=tmp_path/"logs", replace_s=1) as started, Client(started) as client:
        client.wait_for_workers(2, timeout=30)
        found = client.run(lambda: (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"], os.environ["SLURM_CPUS_PER_TASK"]))
        assert sorted(found.values()) == [("0", "2", "2"), ("1", "2", "2")]
        assert all(w["resources"] == {"slot": 1, "gpu": 1, "GB": 2} and w["nthreads"] == 1 for w in client.scheduler_info()["workers"].values())
        before = queue("-t", "R")
        subprocess.run(["scancel", before[0]], check=True)
        until(lambda: len(now := queue("-t", "R")) == 2 and before[0] not in now, 30)
        assert list((tmp_path/"logs").glob("ich-study-*.err"))
    until(lambda: not queue())


# ---- on paper

def test_costs_add_up():
    cost = cost_on_paper({"a": .9, "b": .1}, {"a": 0., "b": 0.}, epochs=2, images=3600, folds=3, recipes=1, slots=2, prepare_s=1., price=3.)
    assert cost.hours_each.round(9).to_dict() | {"all": 0} == {"a": 1., "b": round(1/9, 9), "preprocessing": 1., "all": 0}
    assert cost.slot_hours["all"] == pytest.approx(3 + 1/3 + 1) and cost.price["all"] == pytest.approx(13) and cost.runs["all"] == 7
    assert cost.wall_hours["all"] == pytest.approx(2 + 1) and wall_hours([1, 1, 1], 2) == 2
    for wrong in ({"epochs": 0}, {"slots": 1.5}, {"folds": 1}, {"prepare_s": float("nan")}, {"images": True}):
        refused(lambda: cost_on_paper({"a": 1.}, {"a": 1.}, **({"epochs": 1} | wrong)))
