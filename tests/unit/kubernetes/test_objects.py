# SPDX-License-Identifier: Apache-2.0
"""The rendered objects fit together, and are as strict as their platform allows."""

from __future__ import annotations

import ipaddress
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from enclave_proxy.config import WorkerConfig
from manifests.parse import parse
from tests.kit.kustomize import KUBERNETES, RENDERED, Object, rendered
from xds_server.config import CoordinatorConfig

FOLDERS = tuple(sorted(path.name for path in RENDERED.iterdir()))
WORKLOADS = ("StatefulSet", "Deployment", "DaemonSet")
# The one pod that is not ours, and the one platform whose device wants root, of the guest.
ROOT_ALLOWED = {"sgx-aesmd"}
GUEST_ROOT = ("tdx-kata", "tdx-kata-linkerd")


def workloads(folder: str) -> list[Object]:
    return [item for item in rendered(folder) if item["kind"] in WORKLOADS]


def pods(folder: str) -> list[tuple[str, Object]]:
    return [(item["metadata"]["name"], item["spec"]["template"]) for item in workloads(folder)]


def settings(container: Object, values: dict[str, str]) -> dict[str, str]:
    """A container's EDG_ variables as it would see them; `values` stands for fields and config maps."""
    env: dict[str, str] = {}
    for entry in container["env"]:
        value = entry.get("value")
        if value is None:
            (source,) = entry["valueFrom"].values()
            value = values[source.get("fieldPath") or source["key"]]
        for name, known in env.items():
            value = value.replace(f"$({name})", known)
        env[entry["name"]] = value
    return env


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_container_is_as_strict_as_its_platform_allows(folder: str) -> None:
    for name, template in pods(folder):
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"} & spec.keys()
        guest_root = folder in GUEST_ROOT
        if name not in ROOT_ALLOWED and not guest_root:
            assert spec["securityContext"]["runAsNonRoot"] is True
            assert spec["securityContext"]["runAsUser"] > 0
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["privileged"] is False
            assert context["capabilities"]["drop"] == ["ALL"]
            assert context["capabilities"].get("add", []) == (["SYS_ADMIN"] if guest_root else [])
            assert "memory" in container["resources"]["limits"]
            assert ":" in container["image"]
            assert not container["image"].endswith(":latest")


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_only_folders_of_the_node_are_the_quoting_service_s_and_the_guest_s_configfs(folder: str) -> None:
    for _, template in pods(folder):
        paths = {volume["hostPath"]["path"] for volume in template["spec"].get("volumes", []) if "hostPath" in volume}
        assert paths <= {"/var/run/aesmd", "/sys/kernel/config"}
        if "/sys/kernel/config" in paths:
            assert template["spec"]["runtimeClassName"].startswith("kata-")


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_namespace_is_restricted_unless_something_in_it_needs_more(folder: str) -> None:
    items = rendered(folder)
    for namespace in [item for item in items if item["kind"] == "Namespace"]:
        enforced = namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
        needs = "linkerd" in folder or any(
            "hostPath" in volume for _, template in pods(folder) for volume in template["spec"].get("volumes", [])
        )
        assert enforced == ("privileged" if needs else "restricted")


@pytest.mark.parametrize("folder", FOLDERS)
def test_nobody_has_rights_at_the_kubernetes_api(folder: str) -> None:
    kinds = {item["kind"] for item in rendered(folder)}
    assert not kinds & {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_an_object_names_is_there(folder: str) -> None:
    """Volumes of mounts, ports of probes and Services, pods of selectors."""
    items = rendered(folder)
    templates = pods(folder)
    for workload in [item for item in items if item["kind"] in WORKLOADS]:
        assert workload["spec"]["selector"]["matchLabels"].items() <= labels(workload["spec"]["template"]).items()
        volumes = {volume["name"] for volume in workload["spec"]["template"]["spec"].get("volumes", [])}
        volumes |= {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
        for container in workload["spec"]["template"]["spec"]["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            names = {port["name"] for port in container.get("ports", [])}
            probes = [container[probe] for probe in container if probe.endswith("Probe")]
            assert {probe["httpGet"]["port"] for probe in probes} <= names
    for service in [item for item in items if item["kind"] == "Service"]:
        (template,) = [t for _, t in templates if service["spec"]["selector"].items() <= labels(t).items()]
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= port_names(template)
        assert all(port["appProtocol"] == "tcp" for port in service["spec"]["ports"])
    for policy in [item for item in items if item["kind"] in ("NetworkPolicy", "PodDisruptionBudget")]:
        wanted = policy["spec"].get("podSelector", policy["spec"].get("selector", {})).get("matchLabels", {})
        matched = any(wanted.items() <= labels(template).items() for _, template in templates)
        assert matched or folder == "prometheus-operator"


def labels(template: Object) -> dict[str, str]:
    found: dict[str, str] = template["metadata"]["labels"]
    return found


def port_names(template: Object) -> set[str]:
    return {port["name"] for container in template["spec"]["containers"] for port in container.get("ports", [])}


@pytest.mark.parametrize("folder", [name for name in FOLDERS if "prometheus" not in name])
def test_every_pod_is_denied_all_traffic_but_what_another_policy_allows(folder: str) -> None:
    items = [item for item in rendered(folder) if item["kind"] == "NetworkPolicy"]
    if folder == "injector":  # in the Coordinator's namespace, whose base denies by default
        assert [item["spec"]["policyTypes"] for item in items] == [["Ingress"]]
        return
    (deny,) = [item for item in items if item["metadata"]["name"] == "default-deny"]
    assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


@pytest.mark.parametrize("folder", [name for name in FOLDERS if name.startswith(("simulation", "sgx", "tdx"))])
def test_the_coordinator_understands_its_variables(folder: str) -> None:
    (template,) = [template for name, template in pods(folder) if name == "marblerun-coordinator"]
    (container,) = template["spec"]["containers"]
    config = CoordinatorConfig.from_env(settings(container, {"pccs-url": "https://pccs.example"}))
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["client-api"] == config.client_addr.port
    assert ports["mesh-api"] == config.mesh_addr.port
    assert ports["xds"] == config.xds_addr.port
    assert config.prometheus_addr is not None
    assert ports["metrics"] == config.prometheus_addr.port
    services = [item for item in rendered(folder) if item["kind"] == "Service"]
    for service in services:
        name = f"{service['metadata']['name']}.{service['metadata']['namespace']}"
        assert {name, f"{name}.svc", f"{name}.svc.cluster.local"} <= set(config.dns_names)
    inside = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    assert any(config.seal_dir.is_relative_to(path) for path in inside)
    assert config.simulation is folder.startswith("simulation")
    assert (config.pccs_url is None) is config.simulation


@pytest.mark.parametrize("folder", [name for name in FOLDERS if name.startswith("emojivoto")])
def test_every_worker_understands_its_variables_and_its_type_is_in_the_manifest(folder: str) -> None:
    manifest = json.loads((KUBERNETES / "examples" / "emojivoto" / "manifest.json").read_text())
    seen = set()
    for name, template in pods(folder):
        (container,) = template["spec"]["containers"]
        env = settings(container, {"status.podIP": "10.1.2.3"})
        _, _, *flags = container.get("args", ["proxy", "run"])
        assert flags[:2] in ([], ["--fused", "--"])
        config = WorkerConfig.load(env, {}, flags[2:], cwd=Path("/"), runtime_dir=Path("/run"))
        assert config.marble_type == name == labels(template)["marblerun/marbletype"]
        assert config.advertise == "10.1.2.3"
        assert config.admin is not None
        assert ipaddress.ip_address(config.admin.host).is_unspecified
        assert {"name": "mesh-admin", "containerPort": config.admin.port} in container["ports"]
        own = manifest["Marbles"][name]["TLS"]
        incoming = {int(e["Port"]) for tag in own for e in manifest["TLS"][tag].get("Incoming", [])}
        assert {port["containerPort"] for port in container["ports"]} == incoming | {config.admin.port}
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {str(config.run_dir), str(config.uuid_file.parent)} <= mounts
        seen.add(name)
    assert seen == manifest["Marbles"].keys()


def test_the_example_s_manifest_is_valid() -> None:
    manifest = parse((KUBERNETES / "examples" / "emojivoto" / "manifest.json").read_bytes())
    assert manifest.warnings == ()


def test_the_example_s_network_policies_allow_what_the_manifest_allows_and_no_more() -> None:
    manifest = json.loads((KUBERNETES / "examples" / "emojivoto" / "manifest.json").read_text())
    wanted = {
        (peer, marble)
        for marble, entry in manifest["Marbles"].items()
        for tag in entry["TLS"]
        for incoming in manifest["TLS"][tag].get("Incoming", [])
        for peer in incoming["Peers"]
    }
    policies = [item for item in rendered("emojivoto-simulation") if item["kind"] == "NetworkPolicy"]
    allowed = {
        direction: {
            (
                peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"],
                policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/name"],
            )
            for policy in policies
            for rule in policy["spec"].get(direction, [])
            for peer in rule.get(member, [])
            if "podSelector" in peer
        }
        for direction, member in (("ingress", "from"), ("egress", "to"))
    }
    assert allowed["ingress"] == wanted
    assert {(client, server) for server, client in allowed["egress"]} == wanted


def test_the_webhook_comes_before_linkerd_s_and_fails_closed_for_labelled_pods_only() -> None:
    items = rendered("injector")
    (configuration,) = [item for item in items if item["kind"] == "MutatingWebhookConfiguration"]
    assert configuration["metadata"]["name"] < "linkerd-proxy-injector-webhook-config"
    (webhook,) = configuration["webhooks"]
    assert webhook["failurePolicy"] == "Fail"
    assert webhook["objectSelector"] == {"matchExpressions": [{"key": "marblerun/marbletype", "operator": "Exists"}]}
    assert webhook["admissionReviewVersions"] == ["v1", "v1beta1"]
    assert webhook["rules"][0]["operations"] == ["CREATE"]
    (service,) = [item for item in items if item["kind"] == "Service"]
    assert webhook["clientConfig"]["service"]["name"] == service["metadata"]["name"]
    assert [port["port"] for port in service["spec"]["ports"]] == [webhook["clientConfig"]["service"]["port"]]
    (certificate,) = [i for i in items if i["kind"] == "Certificate" and not i["spec"].get("isCA")]
    assert f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc" in certificate["spec"]["dnsNames"]
    inject_from = configuration["metadata"]["annotations"]["cert-manager.io/inject-ca-from"]
    assert inject_from == f"{certificate['metadata']['namespace']}/{certificate['metadata']['name']}"
    (deployment,) = [item for item in items if item["kind"] == "Deployment"]
    secrets = [v["secret"]["secretName"] for v in deployment["spec"]["template"]["spec"]["volumes"] if "secret" in v]
    assert secrets == [certificate["spec"]["secretName"]]


@pytest.mark.parametrize("platform", ["simulation", "sgx-intel", "sgx-azure", "sgx-alibaba", "tdx-kata"])
def test_linkerd_carries_all_tls_ports_as_opaque_bytes(platform: str) -> None:
    items = rendered(f"{platform}-linkerd")
    (template,) = [template for name, template in pods(f"{platform}-linkerd") if name == "marblerun-coordinator"]
    opaque = template["metadata"]["annotations"]["config.linkerd.io/opaque-ports"].split(",")
    (container,) = template["spec"]["containers"]
    assert {int(port) for port in opaque} == {
        port["containerPort"] for port in container["ports"] if port["name"] != "metrics"
    }
    for service in [item for item in items if item["kind"] == "Service"]:
        said = service["metadata"]["annotations"]["config.linkerd.io/opaque-ports"].split(",")
        assert {int(port) for port in said} == {port["port"] for port in service["spec"]["ports"]}
    servers = {i["metadata"]["name"]: i["spec"]["port"] for i in items if i["kind"] == "Server"}
    assert set(servers.values()) == {p["name"] for p in container["ports"] if p["name"] != "metrics"}
    assert {i["spec"]["targetRef"]["name"] for i in items if i["kind"] == "AuthorizationPolicy"} == servers.keys()


@pytest.mark.parametrize(
    ("platform", "resource"),
    [
        ("sgx-intel", "sgx.intel.com/epc"),
        ("sgx-azure", "kubernetes.azure.com/sgx_epc_mem_in_MiB"),
        ("sgx-alibaba", "alibabacloud.com/sgx_epc_MiB"),
    ],
)
def test_sgx_is_asked_of_the_vendor_s_device_plugin_and_its_taint_tolerated(platform: str, resource: str) -> None:
    (template,) = [template for name, template in pods(platform) if name == "marblerun-coordinator"]
    (container,) = template["spec"]["containers"]
    assert resource in container["resources"]["limits"]
    assert template["spec"]["tolerations"] == [{"key": resource, "operator": "Exists", "effect": "NoSchedule"}]
    assert "args" not in container  # they are in the measured Gramine manifest
    assert container["image"].startswith("marblemesh-coordinator-gramine:")


def test_the_operator_gets_the_rules_that_prometheus_gets() -> None:
    (rule,) = [item for item in rendered("prometheus-operator") if item["kind"] == "PrometheusRule"]
    rules = yaml.safe_load((KUBERNETES.parent / "prometheus" / "rules.yml").read_text())
    assert rule["spec"] == rules, "run scripts/render-kubernetes"


@pytest.mark.parametrize("platform", ["simulation", "sgx-intel", "sgx-azure", "sgx-alibaba", "tdx-kata"])
def test_the_injector_is_told_the_platform(platform: str) -> None:
    """A pod's `$(NAME)` in arguments is the variable of that name."""
    (told,) = [item for item in rendered(platform) if item["metadata"]["name"] == "marblemesh-platform"]
    (template,) = [template for _, template in pods("injector")]
    (container,) = template["spec"]["containers"]
    env = settings(container, told["data"])
    arguments = container["args"]
    for name, value in env.items():
        arguments = [argument.replace(f"$({name})", value) for argument in arguments]
    vendor = {"sgx-intel": "intel", "sgx-azure": "azure", "sgx-alibaba": "alibaba"}.get(platform, "none")
    assert f"--sgx-resource={vendor}" in arguments
    assert ("--simulation" in arguments) is (platform == "simulation")
    if platform not in ("simulation", "sgx-azure"):
        return
    unread = [argument.replace("/tls/", "/no/such/") for argument in arguments]
    verb = [sys.executable, "-m", "marblemesh", *unread]
    done = subprocess.run(verb, capture_output=True, text=True, timeout=60, check=False)
    # Every option is understood; what is missing is the certificate.
    assert done.returncode == 1
    assert "/no/such/tls.crt" in done.stderr
