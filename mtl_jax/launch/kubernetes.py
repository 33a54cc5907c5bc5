"""A JobSet manifest for Kubernetes.

The fields are those of JobSet 0.13 (``jobset.x-k8s.io/v1alpha2``) and batch/v1 of Kubernetes 1.33
or newer; the label is Kueue's, 0.19.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from tyro.conf import UseAppendAction

from mtl_jax.core.errors import UserError, refuse_undecodable
from mtl_jax.launch.command import Work
from mtl_jax.launch.options import (
    DOTTED,
    GONE_ON_WITH,
    LABEL,
    MISTAKE,
    SUBDOMAIN,
    Options,
    device_flags,
    refuse_other_folders,
)

_PORT = 55527
_JOB, _WORKERS, _GATHER = "run", "workers", "gather"
# github.com/kubernetes-sigs/kueue, pkg/controller/constants/constants.go, and
# github.com/kubernetes-sigs/jobset, api/jobset/v1alpha2/jobset_types.go.
_QUEUE = "kueue.x-k8s.io/queue-name"
_EXCLUSIVE = "alpha.jobset.sigs.k8s.io/exclusive-topology"
Spot = Literal["gke", "aks", "eks", "karpenter"]
_GPU, _TPU = "nvidia.com/gpu", "google.com/tpu"
_NAME = "my-name (small letters, digits and '-')"
_LABEL_VALUE = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
# Kubernetes' "quantity" of bytes, as it is written for memory; not 0.
_QUANTITY = r"(?=[^A-Za-z]*[1-9])\d{1,15}(\.\d{1,9})?([kKMGTPE]i?)?"

# The grammar of image references: github.com/distribution/reference, reference.go.
_HOST = r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"
_DOMAIN = rf"({_HOST}(\.{_HOST})*|\[[0-9A-Fa-f:]+\])(:[0-9]+)?"
_PART = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*([-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9A-Fa-f]{32,}"
_IMAGE = rf"(?=[^@]{{1,383}}(@|$))({_DOMAIN}/)?{_PART}(/{_PART})*(:\w[\w.-]{{0,127}})?(@{_DIGEST})?"

_KEY = rf"({DOTTED}/)?{_LABEL_VALUE}"

# By the cluster's kind: what tells nodes that may be taken away, and the taint that they have.
_SPOT = {
    "gke": ("cloud.google.com/gke-spot", "true"),
    "aks": ("kubernetes.azure.com/scalesetpriority", "spot"),
    "eks": ("eks.amazonaws.com/capacityType", "SPOT"),
    "karpenter": ("karpenter.sh/capacity-type", "spot"),
}

# A name of a pod has 63 letters, and the JobSet's, the job's and the index are in it.
_LONGEST = 36


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kubernetes(Options):
    """Print a JobSet manifest, for "| kubectl apply -f -".

    The cluster needs the JobSet controller. A training run is --tasks pods that share each batch.
    A study is --workers pods that share its arms, and one that gathers their results. A pod that
    is told to stop saves and is always created again, and so is a pod whose node is lost. A pod
    that crashed is created again a few times. A user error ends the job.
    """

    image: str
    """container image in which this project is installed"""
    claim: str
    """PersistentVolumeClaim with the volume for the runs; several pods must all be able to write \
to it"""
    mount: str = "/runs"
    """folder at which the pods mount this volume; --workdir is a folder in it"""
    tasks: int = 1
    """pods, one process each; several share each batch"""
    workers: int = 1
    """pods that share the arms of a study; a last one gathers the results"""
    cpus_per_task: int | None = None
    """processor cores per pod"""
    memory: str | None = None
    """memory per pod, such as 32Gi"""
    gpus_per_task: int | None = None
    """GPUs per pod"""
    tpus_per_task: int | None = None
    """TPU chips per pod"""
    devices_per_task: int | None = None
    """CPU devices per pod; by default 1"""
    accelerator: str | None = None
    """kind of GPU or TPU, such as nvidia-l4 or tpu-v5-lite-podslice, as in GKE's node labels"""
    topology: str | None = None
    """topology of the TPU slice, such as 2x4, as in GKE's node labels"""
    node_selector: Annotated[tuple[str, ...], UseAppendAction] = ()
    """label of the nodes to use, such as --node-selector=pool=a100; may be repeated"""
    spot: Spot | None = None
    """run on spot nodes, as this kind of cluster labels them"""
    queue: str | None = None
    """Kueue LocalQueue in which the job waits; by default it does not wait"""
    exclusive_topology: str | None = None
    """node label, such as cloud.google.com/gke-nodepool: each job gets one of its domains \
exclusively"""
    shm: str | None = None
    """size of /dev/shm, such as 16Gi; by default limited only by the memory if there are GPUs or \
several pods"""
    namespace: str | None = None
    """namespace of the cluster; by default that of kubectl"""
    python: str = "python"
    """Python interpreter in the image"""
    grace_seconds: int = 120
    """seconds that a pod has to save after it is told to stop"""
    max_restarts: int = 3
    """maximum number of times that all pods, or a single worker, are restarted after a crash"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_outside(1, 100_000, "tasks", "workers")
        self._refuse_outside(1, 1024, "cpus_per_task", "gpus_per_task", "tpus_per_task")
        self._refuse_outside(1, 1024, "devices_per_task")
        self._refuse_outside(1, 86_400, "grace_seconds")
        self._refuse_outside(0, 65_535, "max_restarts")
        self._refuse_unlike(_IMAGE, "REGISTRY/NAME:TAG (lower case before the tag)", "image")
        self._refuse_unlike(SUBDOMAIN, _NAME, "claim")
        self._refuse_unlike(LABEL, _NAME, "namespace")
        self._refuse_unlike(_LABEL_VALUE, "nvidia-l4", "accelerator")
        self._refuse_unlike(r"[1-9]\d{0,4}(x[1-9]\d{0,4}){1,2}", "2x4", "topology")
        self._refuse_unlike(_QUANTITY, "32Gi", "memory", "shm")
        self._refuse_unlike(SUBDOMAIN, _NAME, "queue")
        self._refuse_unlike(_KEY, "cloud.google.com/gke-nodepool", "exclusive_topology")
        for label in self.node_selector:
            if not re.fullmatch(rf"{_KEY}=({_LABEL_VALUE})?", label, re.ASCII):
                raise UserError(f"--node-selector {label} must be written as pool=a100")
        if self.gpus_per_task and self.tpus_per_task:
            raise UserError("--gpus-per-task and --tpus-per-task cannot be used together: use one")
        refuse_other_folders("--mount", self.mount)
        if self.mount == "/" or ":" in self.mount:
            raise UserError(f"--mount {self.mount} must be a folder below /, without ':', as /runs")

    def runs_folder(self) -> str | None:
        """See ``Options``."""
        return self.mount

    def launch(self, work: Work, run_id: str) -> int:
        """Prints the manifest; returns the exit status.

        Raises:
            UserError: It can't be run so.
        """
        work.refuse_tasks(self.tasks)
        work.refuse_workers(self.workers, self.tasks)
        refuse_other_folders("--workdir", work.workdir)
        if not PurePosixPath(work.workdir).is_relative_to(self.mount):
            raise UserError(
                f"--workdir {work.workdir} would be gone with its pod: name a folder in "
                f"--mount {self.mount}"
            )
        for word in work.words:
            refuse_undecodable(word)
        print(yaml.safe_dump(self.manifest(work, run_id), sort_keys=False, width=1000), end="")
        return 0

    def manifest(self, work: Work, run_id: str) -> dict[str, Any]:
        """The JobSet (kubernetes-sigs/jobset, ``jobset.x-k8s.io/v1alpha2``) as JSON."""
        name = _kubernetes_name(f"{work.name}-{run_id}")
        metadata: dict[str, Any] = {"name": name}
        if self.namespace:
            metadata["namespace"] = self.namespace
        if self.queue:
            metadata["labels"] = {_QUEUE: self.queue}
        if self.exclusive_topology:
            metadata["annotations"] = {_EXCLUSIVE: self.exclusive_topology}
        if self.workers > 1:
            jobs = [
                {"name": _WORKERS, "template": {"spec": self._workers_job(work)}},
                {
                    "name": _GATHER,
                    "dependsOn": [{"name": _WORKERS, "status": "Complete"}],
                    "template": {"spec": self._gather_job(work)},
                },
            ]
        else:
            jobs = [{"name": _JOB, "template": {"spec": self._run_job(work, name)}}]
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": metadata,
            "spec": {
                # So that the first pod has a name that the others find it by.
                "network": {"enableDNSHostnames": True, "subdomain": name},
                "failurePolicy": {
                    "maxRestarts": self.max_restarts,
                    # Pods of one start never meet those of another.
                    "restartStrategy": "BlockingRecreate",
                    # What ``FailJob`` below has ended.
                    "rules": [
                        {
                            "name": "mistake",
                            "action": "FailJobSet",
                            "onJobFailureReasons": ["PodFailurePolicy"],
                        }
                    ],
                },
                "replicatedJobs": [{"replicas": 1, **job} for job in jobs],
            },
        }

    def _run_job(self, work: Work, name: str) -> dict[str, Any]:
        """The job of pods that share each batch, if there are several."""
        several = self.tasks > 1
        environment = self._environment(name) if several else self._device_environment()
        return {
            "completionMode": "Indexed",
            "parallelism": self.tasks,
            "completions": self.tasks,
            # JobSet makes all of them again.
            "backoffLimit": 0,
            "podFailurePolicy": {"rules": _ends(MISTAKE)},
            "template": self._pod(work.distributed() if several else work, environment),
        }

    def _workers_job(self, work: Work) -> dict[str, Any]:
        """The job of the workers of a study, of which each is recreated by itself."""
        return {
            "completionMode": "Indexed",
            "parallelism": self.workers,
            "completions": self.workers,
            "backoffLimitPerIndex": self.max_restarts,
            "podFailurePolicy": {"rules": _ends(MISTAKE)},
            "template": self._pod(work.worker(), self._device_environment()),
        }

    def _gather_job(self, work: Work) -> dict[str, Any]:
        """The job that writes the report; its status is 1 where arms have failed."""
        plain = dataclasses.replace(
            self,
            **dict.fromkeys(("gpus_per_task", "tpus_per_task", "accelerator", "topology")),
            node_selector=(),
            spot=None,
        )
        environment = [{"name": "JAX_PLATFORMS", "value": "cpu"}]
        return {
            "completionMode": "Indexed",
            "parallelism": 1,
            "completions": 1,
            "backoffLimit": self.max_restarts,
            "podFailurePolicy": {"rules": _ends(1, MISTAKE)},
            "template": plain._pod(work.flagged("--gather"), environment),
        }

    def _pod(self, work: Work, environment: list[dict[str, Any]]) -> dict[str, Any]:
        mounts = [{"name": "runs", "mountPath": self.mount}]
        volumes = [{"name": "runs", "persistentVolumeClaim": {"claimName": self.claim}}]
        if self.shm or self.gpus_per_task or self.tasks > 1:
            # What a container has by itself, 64 MiB, is too little for NCCL.
            mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108
            size = {"sizeLimit": self.shm} if self.shm else {}
            volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", **size}})
        container = {
            "name": "run",
            "image": self.image,
            # $(NAME) would be replaced: $$ stands for $.
            "command": [word.replace("$", "$$") for word in work.command(self.python)],
            "env": environment,
            "volumeMounts": mounts,
            "resources": self._resources(),
        }
        pod = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": self.grace_seconds,
            "nodeSelector": self._selector(),
            "tolerations": self._tolerations(),
            "containers": [{key: value for key, value in container.items() if value}],
            "volumes": volumes,
        }
        return {"spec": {key: value for key, value in pod.items() if value}}

    def _environment(self, name: str) -> list[dict[str, Any]]:
        """How the processes find each other, without asking Kubernetes."""
        index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        return [
            {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{name}-{_JOB}-0-0.{name}:{_PORT}"},
            {"name": "JAX_NUM_PROCESSES", "value": str(self.tasks)},
            {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": index}}},
            *self._device_environment(),
        ]

    def _device_environment(self) -> list[dict[str, Any]]:
        flags = device_flags(self.devices_per_task)
        return [{"name": "XLA_FLAGS", "value": flags}] if flags else []

    def _resources(self) -> dict[str, Any]:
        counted = {_GPU: self.gpus_per_task, _TPU: self.tpus_per_task}
        asked = {"cpu": self.cpus_per_task, "memory": self.memory}
        # Of what is counted Kubernetes asks for as many as the limit says.
        parts = {"requests": asked, "limits": counted}
        found = {
            part: {name: str(value) for name, value in amounts.items() if value}
            for part, amounts in parts.items()
        }
        return {part: amounts for part, amounts in found.items() if amounts}

    def _selector(self) -> dict[str, str]:
        kind = "tpu-accelerator" if self.tpus_per_task else "accelerator"
        labels = {
            f"cloud.google.com/gke-{kind}": self.accelerator,
            "cloud.google.com/gke-tpu-topology": self.topology,
            **dict(label.split("=") for label in self.node_selector),
            **dict([_SPOT[self.spot]] if self.spot else []),
        }
        return {label: value for label, value in labels.items() if value is not None}

    def _tolerations(self) -> list[dict[str, str]]:
        found = []
        if self.spot:
            key, value = _SPOT[self.spot]
            taint = {"key": key, "operator": "Equal", "value": value}
            found.append({**taint, "effect": "NoSchedule"})
        if self.gpus_per_task:
            found.append({"key": _GPU, "operator": "Exists", "effect": "NoSchedule"})
        return found


def _ends(*final: int) -> list[dict[str, Any]]:
    """What comes of the ends of a pod that are no crash.

    What has saved, or was told to end before it had begun, is recreated and not counted, and so
    is what was lost with its node; what ended with a status of ``final`` is not made again.
    """

    def on(action: str, *statuses: int) -> dict[str, Any]:
        codes = {"containerName": "run", "operator": "In", "values": list(statuses)}
        return {"action": action, "onExitCodes": codes}

    return [
        on("FailJob", *final),
        on("Ignore", *GONE_ON_WITH),
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]


def _kubernetes_name(text: str) -> str:
    """A name that a service may have (RFC 1035), which differs where the end of the text does."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    kept = plain[-_LONGEST:].strip("-")
    return kept if kept[0].isalpha() else f"r{kept}"
