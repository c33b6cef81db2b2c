"""The Kubernetes manifests follow their schemas and refer to each other correctly.

No cluster is needed: the tests do not apply them.
"""

import itertools
import json
import os
import shlex
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm_router.launch_router import parse_router_args

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "kubernetes"
DOCUMENTS = [
    (file.name, document)
    for file in sorted(FOLDER.glob("*.yaml"))
    for document in yaml.safe_load_all(file.read_text())
]
WORKLOADS = [
    document for _, document in DOCUMENTS if "template" in document.get("spec", {})
]


def name_of(document: dict) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


def pod(workload: dict) -> dict:
    return workload["spec"]["template"]["spec"]


def container(workload: dict) -> dict:
    (found,) = pod(workload)["containers"]
    return found


def autoscaler(scaled: dict) -> dict:
    """The HorizontalPodAutoscaler that KEDA makes of a ScaledObject."""
    spec = scaled["spec"]
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment"}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": scaled["metadata"],
        "spec": {
            "scaleTargetRef": deployment | spec["scaleTargetRef"],
            "minReplicas": spec["minReplicaCount"],
            "maxReplicas": spec["maxReplicaCount"],
            "behavior": spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"],
        },
    }


@pytest.mark.parametrize(
    ("file", "document"), DOCUMENTS, ids=[f"{f} {name_of(d)}" for f, d in DOCUMENTS]
)
def test_follows_the_schema(file, document):
    """KEDA's own part of a ScaledObject has a schema in KEDA only."""
    if document["kind"] == "ScaledObject":
        document = autoscaler(document)
    latest = kubernetes_validate.latest_version()
    kubernetes_validate.validate(document, latest, strict=True)


def test_the_scaled_object_names_a_deployment_and_leaves_room_for_disruptions():
    (scaled,) = (d["spec"] for _, d in DOCUMENTS if d["kind"] == "ScaledObject")
    (target,) = (
        w["spec"]
        for w in WORKLOADS
        if scaled["scaleTargetRef"] == {"name": w["metadata"]["name"]}
    )
    (budget,) = (
        d["spec"]["minAvailable"]
        for _, d in DOCUMENTS
        if d["kind"] == "PodDisruptionBudget"
        and d["spec"]["selector"] == target["selector"]
    )
    least, most = scaled["minReplicaCount"], scaled["maxReplicaCount"]
    assert (
        budget < least <= target["replicas"] <= scaled["fallback"]["replicas"] <= most
    )


def test_a_wrong_key_would_be_seen():
    broken = yaml.safe_load(yaml.safe_dump(WORKLOADS[0]))
    container(broken)["startupprobe"] = container(broken).pop("startupProbe")
    with pytest.raises(kubernetes_validate.ValidationError):
        latest = kubernetes_validate.latest_version()
        kubernetes_validate.validate(broken, latest, strict=True)


@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_pods_are_probed_drained_and_confined(workload):
    spec, main = pod(workload), container(workload)
    assert {"readinessProbe", "livenessProbe"} <= main.keys()
    assert spec["securityContext"]["runAsNonRoot"]
    # What the "restricted" standard asks of a container, and a read-only root.
    assert main["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    ports = {port["name"] for port in main.get("ports", [])}
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = main.get(kind, {})
        if "httpGet" in probe:
            assert probe["httpGet"]["port"] in ports
    if workload["kind"] == "Deployment":
        rolling = workload["spec"]["strategy"]["rollingUpdate"]
        assert rolling == {"maxUnavailable": 0, "maxSurge": 1}
    if "http" in ports:  # serves clients
        assert "startupProbe" in main
        wait = main["lifecycle"]["preStop"]["sleep"]["seconds"]
        drain = [w for w in main["args"] if w.startswith("--shutdown-timeout=")]
        seconds = int(drain[0].partition("=")[2]) if drain else 120
        assert spec["terminationGracePeriodSeconds"] > wait + seconds


@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_commands_are_accepted(workload):
    """The parsers of vLLM and of the router accept them."""
    arguments = container(workload)["args"]
    if "router" in workload["metadata"]["name"]:
        arguments = [a.replace("$(NAMESPACE)", "default") for a in arguments]
        parsed = parse_router_args(arguments)
        assert parsed.service_discovery and parsed.selector == {"app": "nemotron-vl"}
    else:
        parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
        assert parsed.model_tag == "nvidia/Llama-3.1-Nemotron-Nano-VL-8B-V1"
        assert parsed.shutdown_timeout > 0
        probe = container(workload)["livenessProbe"]
        *command, seconds = probe["exec"]["command"]
        assert command == ["nemotron-vl", "probe"]
        assert probe["timeoutSeconds"] > int(seconds.removeprefix("--seconds="))


SERVERS = [w for w in WORKLOADS if "nvidia/" in " ".join(container(w)["args"])]


@pytest.mark.parametrize("workload", SERVERS, ids=name_of)
def test_a_server_starts_with_an_empty_folder_of_metrics(workload, tmp_path):
    main, folder = container(workload), tmp_path / "metrics"
    (metrics,) = (
        entry["value"]
        for entry in main["env"]
        if entry["name"] == "PROMETHEUS_MULTIPROC_DIR"
    )
    assert metrics.startswith("/dev/shm/")
    vllm = tmp_path / "vllm"
    vllm.write_text(f'#!/bin/sh\nls {folder}; echo "$@"; touch {folder}/counter.db\n')
    vllm.chmod(0o755)
    env = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PROMETHEUS_MULTIPROC_DIR": str(folder),
    }
    for _ in range(2):
        found = subprocess.check_output(
            [*main["command"], *main["args"]], env=env, text=True
        )
        assert found.split("\n") == ["serve " + " ".join(main["args"]), ""]


@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_only_named_pods_reach_a_port(workload):
    labels = workload["spec"]["template"]["metadata"]["labels"]
    (policy,) = (
        document["spec"]
        for _, document in DOCUMENTS
        if document["kind"] == "NetworkPolicy"
        and document["spec"]["podSelector"]["matchLabels"] == labels
    )
    assert "Ingress" in policy["policyTypes"]
    ports = {port["name"] for port in container(workload)["ports"]}
    for rule in policy["ingress"]:
        assert rule["from"]
        assert {port["port"] for port in rule["ports"]} <= ports
    if "router" in workload["metadata"]["name"]:  # /add_worker needs no key
        (sources,) = (
            r["from"] for r in policy["ingress"] if {"port": "http"} in r["ports"]
        )
        assert sources == [
            {"podSelector": {"matchLabels": {"nemotron-vl-proxy": "true"}}}
        ]


def test_prometheus_finds_all_pods_by_services_that_are_applied_with_them():
    path = ROOT / "examples/monitoring/prometheus-kubernetes.yaml"
    for job in yaml.safe_load(path.read_text())["scrape_configs"]:
        (found,) = job["dns_sd_configs"]
        name = found["names"][0].partition(".")[0]
        ((file, service),) = (
            (f, d["spec"])
            for f, d in DOCUMENTS
            if d["kind"] == "Service" and d["metadata"]["name"] == name
        )
        assert service["clusterIP"] == "None" and service["publishNotReadyAddresses"]
        (workload,) = (
            d for f, d in DOCUMENTS if f == file and d["kind"] == "Deployment"
        )
        assert service["selector"] == workload["spec"]["selector"]["matchLabels"]
        ports = {p["name"]: p["containerPort"] for p in container(workload)["ports"]}
        (port,) = service["ports"]
        assert found["port"] == port["port"] == ports[port["targetPort"]]


def recommended() -> tuple[dict[str, str], dict[str, str]]:
    """Variables and options, with their values, that docs/security.md recommends."""
    page = (ROOT / "docs" / "security.md").read_text()
    _, _, rest = page.partition("for users you do not trust:\n\n```bash\n")
    block = shlex.split(rest.partition("```")[0].replace("\\\n", " "))
    program = block.index("vllm")
    variables = dict(word.split("=", 1) for word in block[:program])
    pairs = itertools.pairwise(block[program:])
    return variables, {word: value for word, value in pairs if word[:2] == "--"}


@pytest.mark.parametrize("workload", SERVERS, ids=name_of)
def test_servers_are_set_up_as_the_page_on_security_recommends(workload):
    variables, options = recommended()
    assert len(variables) == 5
    assert len(options) == 4
    main = container(workload)
    found = {entry["name"]: entry.get("value") for entry in main["env"]}
    assert variables.items() <= found.items()
    if "VLLM_API_KEY" in found:  # from a secret
        del options["--api-key"]
    given = dict(word.partition("=")[::2] for word in main["args"])
    assert options.keys() <= given.keys()
    limit, most = (
        json.loads(values["--limit-mm-per-prompt"])["image"]
        for values in (given, options)
    )
    assert limit <= most
    assert int(given["--max-model-len"]) <= int(options["--max-model-len"])
    assert given["--allowed-media-domains"] == "none.invalid"
    # The tile cache and the options for trusted clients are off.
    assert not given.keys() & {
        "--additional-config",
        "--allowed-local-media-path",
        "--enable-mm-embeds",
        "--trust-remote-code",
        "--trust-request-mm-kwargs",
    }


def test_names_refer_to_each_other():
    def named(kind: str) -> set[str]:
        return {d["metadata"]["name"] for _, d in DOCUMENTS if d["kind"] == kind}

    labels = [
        workload["spec"]["template"]["metadata"]["labels"] for workload in WORKLOADS
    ]

    def selects(selector: dict) -> bool:
        return any(selector.items() <= found.items() for found in labels)

    for _, document in DOCUMENTS:
        spec = document.get("spec", {})
        if document["kind"] == "Service":
            assert selects(spec["selector"]), name_of(document)
        if document["kind"] in ("PodDisruptionBudget", "Deployment"):
            assert selects(spec["selector"]["matchLabels"]), name_of(document)
        if document["kind"] == "NetworkPolicy":
            assert selects(spec["podSelector"]["matchLabels"]), name_of(document)
    for workload in WORKLOADS:
        assert workload["spec"]["selector"]["matchLabels"].items() <= (
            workload["spec"]["template"]["metadata"]["labels"].items()
        )
        for volume in pod(workload).get("volumes", []):
            if claim := volume.get("persistentVolumeClaim"):
                assert claim["claimName"] in named("PersistentVolumeClaim")
        account = pod(workload).get("serviceAccountName")
        assert account is None or account in named("ServiceAccount")
