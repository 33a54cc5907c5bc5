"""Launching in Kubernetes and at any cloud: what is printed, against the present schemas."""

import json
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.launching import AWKWARD, shellcheck, shown

ROOT = Path(__file__).parents[2]
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def checked(text, schema):
    """The YAML that was printed, which follows a schema."""
    file = Path(__file__).parent / "schemas" / f"{schema}.json"
    found = yaml.safe_load(text)
    jsonschema.validate(found, json.loads(file.read_text()))
    return found


def manifest_of(capsys, options, words):
    return checked(shown(capsys, "kubernetes", *options, "--", *words), "jobset")


def command_of(container):
    # Kubernetes takes $$ for $, and $(NAME) for a variable.
    return [word.replace("$$", "$") for word in container["command"]]


def rules_of(job):
    """The actions by statuses, and that of a pod that is lost with its node."""
    *rules, gone = job["podFailurePolicy"]["rules"]
    assert gone["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert {rule["onExitCodes"]["operator"] for rule in rules} == {"In"}
    codes = {tuple(rule["onExitCodes"]["values"]): rule["action"] for rule in rules}
    return codes | {"gone": gone["action"]}


def test_a_manifest_of_several_pods(capsys):
    options = [
        *("--image=i", "--claim=c", "--tasks=4", "--cpus-per-task=3", "--memory=32Gi"),
        *("--tpus-per-task=4", "--accelerator=tpu-v5-lite-podslice", "--topology=4x4"),
        *("--namespace=n", "--devices-per-task=2", "--run-id=A_b.7", "--max-restarts=3"),
        *("--queue=lq", "--exclusive-topology=cloud.google.com/gke-nodepool", "--spot=gke"),
        *("--shm=16Gi", "--node-selector=pool=a100"),
    ]
    words = ["train", f"--train-file={AWKWARD}", "--workdir=/runs/x"]
    manifest = manifest_of(capsys, options, words)
    assert manifest["metadata"] == {
        "name": "train-a-b-7",
        "namespace": "n",
        "labels": {"kueue.x-k8s.io/queue-name": "lq"},
        "annotations": {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        },
    }
    spec = manifest["spec"]
    assert spec["network"] == {"enableDNSHostnames": True, "subdomain": "train-a-b-7"}
    # A mistake ends all at once; what crashed is recreated three times, when all pods are gone.
    on_mistake = {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    assert spec["failurePolicy"] == {
        "maxRestarts": 3,
        "restartStrategy": "BlockingRecreate",
        "rules": [{"name": "mistake", **on_mistake}],
    }
    (replicated,) = spec["replicatedJobs"]
    assert (replicated["name"], replicated["replicas"]) == ("run", 1)
    job = replicated["template"]["spec"]
    counts = [job[name] for name in ("completionMode", "completions", "parallelism")]
    assert counts == ["Indexed", 4, 4]
    # 75 and what takes a pod away are no failures; any other makes all pods again.
    assert job["backoffLimit"] == 0
    assert rules_of(job) == {(2,): "FailJob", (75, 143): "Ignore", "gone": "Ignore"}
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] == 120
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "pool": "a100",
        "cloud.google.com/gke-spot": "true",
    }
    (spot,) = pod["tolerations"]
    assert (spot["key"], spot["value"]) == ("cloud.google.com/gke-spot", "true")
    assert pod["volumes"] == [
        {"name": "runs", "persistentVolumeClaim": {"claimName": "c"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}},
    ]
    (container,) = pod["containers"]
    assert (container["name"], container["image"]) == ("run", "i")
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"runs": "/runs", "shm": "/dev/shm"}  # noqa: S108
    assert command_of(container) == ["python", "-m", "mtl_jax", *words, "--distributed"]
    assert AWKWARD.replace("$", "$$") in container["command"][4]
    assert container["resources"] == {
        "requests": {"cpu": "3", "memory": "32Gi"},
        "limits": {"google.com/tpu": "4"},
    }
    assert container["env"] == [
        {"name": "JAX_COORDINATOR_ADDRESS", "value": "train-a-b-7-run-0-0.train-a-b-7:55527"},
        {"name": "JAX_NUM_PROCESSES", "value": "4"},
        {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": INDEX}}},
        {"name": "XLA_FLAGS", "value": "--xla_force_host_platform_device_count=2"},
    ]


def test_a_manifest_of_one_pod(capsys):
    options = ["--image=i", "--claim=c", "--gpus-per-task=1", "--accelerator=nvidia-l4"]
    names = ["--mount=/data", f"--run-id={'7' * 60}", "--python=/venv/bin/python", "--dry-run"]
    manifest = manifest_of(capsys, [*options, *names], ["experiment", "freezing"])
    assert manifest["metadata"] == {"name": "r" + "7" * 36}
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    workdir = f"--workdir=/data/freezing-{'7' * 60}"
    command = ["/venv/bin/python", "-m", "mtl_jax", "study", "freezing", workdir]
    assert container["command"] == command
    assert "env" not in container
    assert container["resources"] == {"limits": {"nvidia.com/gpu": "1"}}
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    assert [each["key"] for each in pod["tolerations"]] == ["nvidia.com/gpu"]


def test_a_manifest_of_workers(capsys):
    options = ["--image=i", "--claim=c", "--workers=8", "--gpus-per-task=1", "--spot=eks"]
    words = ["experiment", "freezing", "--workdir=/runs/x"]
    spec = manifest_of(capsys, options, words)["spec"]
    workers, gather = spec["replicatedJobs"]
    job = workers["template"]["spec"]
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 8, 8)
    # Each is recreated by itself, when it has crashed thrice at most.
    assert job["backoffLimitPerIndex"] == 3
    assert rules_of(job) == {(2,): "FailJob", (75, 143): "Ignore", "gone": "Ignore"}
    (container,) = job["template"]["spec"]["containers"]
    command = ["python", "-m", "mtl_jax", "study", "freezing", "--workdir=/runs/x"]
    assert container["command"] == [*command, "--worker"]
    assert job["template"]["spec"]["nodeSelector"] == {"eks.amazonaws.com/capacityType": "SPOT"}
    # When all have ended, one without a GPU, on a node that stays, writes the report.
    assert gather["dependsOn"] == [{"name": workers["name"], "status": "Complete"}]
    job = gather["template"]["spec"]
    assert rules_of(job) == {(1, 2): "FailJob", (75, 143): "Ignore", "gone": "Ignore"}
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == [*command, "--gather"]
    assert container["env"] == [{"name": "JAX_PLATFORMS", "value": "cpu"}]
    assert not {"nodeSelector", "tolerations"} & {*pod}
    assert "resources" not in container


def task_of(capsys, options, words):
    return checked(shown(capsys, "sky", *options, "--", *words), "skypilot")


def launched(task):
    """What a task's script starts in the end."""
    return "EXTRAS=" + task["run"].partition("\nEXTRAS=")[2].rstrip("\n")


def test_a_task_at_any_cloud(capsys):
    options = [
        *("--infra=gcp/us-central1", "--accelerators=H100:8", "--cpus=8+", "--memory=32"),
        *("--disk-size=200", "--image=docker:nvcr.io/nvidia/jax:25.01-py3", "--spot"),
        *("--tasks=2", "--devices-per-task=2", "--run-id=A_b.7", "--max-restarts=5"),
        *("--setup=mountpoint -q /runs || sudo mount -t nfs 10.0.0.2:/share /runs", "--volume=v"),
    ]
    task = task_of(capsys, options, ["train", f"--train-file={AWKWARD}", "--workdir=/runs/x"])
    assert (task["name"], task["num_nodes"], task["workdir"]) == ("train-a-b-7", 2, str(ROOT))
    assert task["volumes"] == {"/runs": "v"}
    assert task["resources"] == {
        "infra": "gcp/us-central1",
        "accelerators": "H100:8",
        "cpus": "8+",
        "memory": "32",
        "disk_size": 200,
        "image_id": "docker:nvcr.io/nvidia/jax:25.01-py3",
        "use_spot": True,
        # What has saved is gone on with and not counted; what crashed is begun again five times.
        "job_recovery": {"max_restarts_on_errors": 5, "recover_on_exit_codes": [75, 143]},
    }
    shellcheck(f"#!/usr/bin/env bash\n{task['run']}")
    assert launched(task).startswith("EXTRAS=cuda exec ./launch.sh local -- train ")
    assert launched(task).endswith(" --workdir=/runs/x --distributed")
    assert 'JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"' in task["run"]


def test_each_launch_of_a_study_is_a_worker(capsys):
    out = shown(capsys, "sky", "--", "experiment", "experiments/examples/own_study.py")
    task = checked(out, "skypilot")
    workdir = next(word for word in launched(task).split() if word.startswith("--workdir="))
    assert workdir.startswith("--workdir=/runs/own_study-")
    study = "experiments/examples/own_study.py"
    expected = f"EXTRAS= exec ./launch.sh local -- experiment {study} {workdir} --worker"
    assert launched(task) == expected
    assert "num_nodes" in task
    assert out.splitlines()[1].endswith(f"study {study} {workdir} --gather")
    # No line of a name is one of the task.
    for end in ("\n", "\x85", "\u2028"):
        folder = f"--workdir=/runs/x{end}name: other"
        out = shown(capsys, "sky", "--run-id=a", "--", "experiment", study, folder)
        assert checked(out, "skypilot")["name"] == "own-study-a"


def test_a_disk_of_the_machine_itself_is_refused(capsys, tmp_path):
    """What a machine's shell makes of the task where nothing is mounted."""
    mount = f'{tmp_path}/it\'s "so" $(touch {tmp_path}/ran)'
    script = task_of(capsys, [f"--mount={mount}"], ["train", f"--workdir={mount}/x"])["run"]
    own = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", "-c", script], env=own, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {mount} is on the machine's own disk: mount what all see with --setup\n"
    )
    assert not (tmp_path / "ran").exists()


def test_the_schemas_refuse_what_there_is_not(capsys):
    options = ["--image=i", "--claim=c"]
    text = shown(capsys, "kubernetes", *options, "--", "train", "--workdir=/runs/x")
    with pytest.raises(jsonschema.ValidationError, match="restartPolicies"):
        checked(text.replace("restartPolicy", "restartPolicies"), "jobset")
    text = shown(capsys, "sky", "--", "train", "--workdir=/runs/x")
    with pytest.raises(jsonschema.ValidationError, match="256 is greater than the maximum"):
        checked(text.replace("- 75", "- 256"), "skypilot")
