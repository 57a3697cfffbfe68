# SPDX-License-Identifier: Apache-2.0
"""What a Marble's pod gets: MarbleRun's part as its injector gives it, and what our worker needs beyond that."""

from __future__ import annotations

from typing import Any

import pytest

from marblemesh.inject.errors import Refused
from marblemesh.inject.pod import Injected, inject_pod
from marblemesh.inject.report import Level
from marblemesh.inject.settings import AdminAddress, Advertise, Settings
from marblemesh.inject.sgx import sgx_resources
from tests.kit.pods import Json, pod

MARBLERUN = Settings(worker=False)
LABEL = "marblerun/marbletype"


def injected(item: Json, settings: Settings = MARBLERUN, namespace: str | None = "shop") -> Json:
    return result(item, settings, namespace).template


def result(item: Json, settings: Settings = MARBLERUN, namespace: str | None = "shop") -> Injected:
    return inject_pod(item, settings, uuid_volume="uuid-file", namespace=namespace)


def environment(item: Json, container: int = 0) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in containers(item)[container]["env"]}


def containers(item: Json) -> list[Json]:
    found: list[Json] = item["spec"]["containers"]
    return found


def two(**first: Any) -> Json:
    return pod(containers=[{"name": "web", "image": "a", **first}, {"name": "app", "image": "b"}])


def texts(found: Injected, level: Level) -> list[str]:
    return [note.text for note in found.notes if note.level is level]


def test_the_four_variables_are_marblerun_s() -> None:
    assert environment(injected(pod(labels={LABEL: "Voting-svc"}))) == {
        "EDG_MARBLE_COORDINATOR_ADDR": "coordinator-mesh-api.marblerun:2001",
        "EDG_MARBLE_TYPE": "Voting-svc",
        "EDG_MARBLE_DNS_NAMES": "voting-svc,voting-svc.shop,voting-svc.shop.svc.cluster.local",
        "EDG_MARBLE_UUID_FILE": "/Voting-svc-uid/uuid-file",
    }


def test_a_variable_that_is_there_stays() -> None:
    mine = {"name": "EDG_MARBLE_COORDINATOR_ADDR", "value": "mine:1"}
    found = result(pod(containers=[{"name": "web", "image": "a", "env": [mine]}]))
    assert containers(found.template)[0]["env"][0] == mine
    assert environment(found.template)["EDG_MARBLE_COORDINATOR_ADDR"] == "mine:1"
    assert "EDG_MARBLE_COORDINATOR_ADDR of container web is set already" in "".join(texts(found, Level.LEFT))


def test_where_the_namespace_is_not_known_the_pod_finds_out_by_itself() -> None:
    """Kubernetes puts in variables that stand before: the order counts."""
    found = injected(pod(), namespace=None)
    names = [entry["name"] for entry in containers(found)[0]["env"]]
    assert names.index("MARBLE_NAMESPACE") < names.index("EDG_MARBLE_DNS_NAMES")
    assert environment(found)["MARBLE_NAMESPACE"] == {"fieldRef": {"fieldPath": "metadata.namespace"}}
    assert environment(found)["EDG_MARBLE_DNS_NAMES"] == (
        "web,web.$(MARBLE_NAMESPACE),web.$(MARBLE_NAMESPACE).svc.cluster.local"
    )


def test_an_instance_is_found_by_its_pod_s_address_if_that_is_wanted() -> None:
    variables = environment(injected(pod(), Settings(advertise=Advertise.POD_IP)))
    assert variables["EDG_MARBLE_ADVERTISE"] == "$(MARBLE_POD_IP)"
    assert variables["EDG_MARBLE_DNS_NAMES"].endswith(",$(MARBLE_POD_IP)")
    assert variables["MARBLE_POD_IP"] == {"fieldRef": {"fieldPath": "status.podIP"}}


def test_the_pod_s_uid_is_the_file_that_names_the_instance() -> None:
    found = injected(pod())
    assert found["spec"]["volumes"] == [
        {
            "name": "uuid-file",
            "downwardAPI": {"items": [{"path": "uuid-file", "fieldRef": {"fieldPath": "metadata.uid"}}]},
        }
    ]
    assert containers(found)[0]["volumeMounts"] == [{"name": "uuid-file", "mountPath": "/web-uid", "readOnly": True}]


@pytest.mark.parametrize("first", [0, 1])
def test_a_container_with_a_mount_of_its_own_takes_the_volume_from_no_other(first: int) -> None:
    """In MarbleRun's injector one container's mount could keep the volume from the others."""
    item = two()
    containers(item)[first]["volumeMounts"] = [{"name": "mine", "mountPath": "/web-uid"}]
    found = injected(item)
    assert [volume["name"] for volume in found["spec"]["volumes"]] == ["uuid-file"]
    assert containers(found)[1 - first]["volumeMounts"][0]["name"] == "uuid-file"
    assert containers(found)[first]["volumeMounts"] == [{"name": "mine", "mountPath": "/web-uid"}]


def test_if_all_have_a_mount_there_is_no_volume() -> None:
    item = pod(containers=[{"name": "web", "image": "a", "volumeMounts": [{"name": "mine", "mountPath": "/web-uid"}]}])
    assert "volumes" not in injected(item)["spec"]


def test_a_volume_of_the_name_with_something_else_in_it_is_not_used() -> None:
    found = injected(pod(volumes=[{"name": "uuid-file", "emptyDir": {}}]))
    assert [volume["name"] for volume in found["spec"]["volumes"]] == ["uuid-file", "uuid-file-2"]
    assert containers(found)[0]["volumeMounts"][0]["name"] == "uuid-file-2"


@pytest.mark.parametrize(
    ("vendor", "limits", "toleration"),
    [
        (
            "intel",
            {"sgx.intel.com/epc": "10Mi", "sgx.intel.com/enclave": "1", "sgx.intel.com/provision": "1"},
            "sgx.intel.com/epc",
        ),
        (
            "azure",
            {"kubernetes.azure.com/sgx_epc_mem_in_MiB": "10"},
            "kubernetes.azure.com/sgx_epc_mem_in_MiB",
        ),
        ("alibaba", {"alibabacloud.com/sgx_epc_MiB": "10"}, "alibabacloud.com/sgx_epc_MiB"),
        ("example.com/epc", {"example.com/epc": "10"}, "example.com/epc"),
    ],
)
def test_each_vendor_s_plugin_has_its_resources(vendor: str, limits: Json, toleration: str) -> None:
    found = injected(pod(), Settings(worker=False, sgx=sgx_resources(vendor)))
    assert containers(found)[0]["resources"] == {"limits": limits}
    assert found["spec"]["tolerations"] == [{"key": toleration, "operator": "Exists", "effect": "NoSchedule"}]


def test_marblerun_s_key_for_intel_means_all_three_resources() -> None:
    assert sgx_resources("sgx.intel.com/epc") == sgx_resources("intel")


@pytest.mark.parametrize("text", ["", "amd", "Example.com/epc", "example.com/", "/epc", "a/b", "example.com/e/pc"])
def test_what_is_no_resource_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not intel, azure, alibaba, none or a resource key"):
        sgx_resources(text)


def test_limits_that_are_there_stay_and_requests_are_matched() -> None:
    """Kubernetes refuses an extended resource whose request and limit differ."""
    resources = {"requests": {"sgx.intel.com/epc": "64Mi"}, "limits": {"sgx.intel.com/enclave": "2"}}
    found = injected(pod(containers=[{"name": "web", "image": "a", "resources": resources}]))
    assert containers(found)[0]["resources"]["limits"] == {
        "sgx.intel.com/enclave": "2",
        "sgx.intel.com/epc": "64Mi",
        "sgx.intel.com/provision": "1",
    }


@pytest.mark.parametrize("present", [{"operator": "Exists"}, {"key": "sgx.intel.com/epc", "operator": "Exists"}])
def test_a_pod_that_tolerates_the_nodes_already_gets_no_second_toleration(present: Json) -> None:
    assert injected(pod(tolerations=[present]))["spec"]["tolerations"] == [present]


def test_the_label_disables_resources_alone() -> None:
    found = injected(pod(labels={LABEL: "web", "marblerun/resource-injection": "disabled"}))
    assert "resources" not in containers(found)[0]
    assert "tolerations" not in found["spec"]
    assert environment(found)["EDG_MARBLE_TYPE"] == "web"


def test_the_label_restricts_everything_to_one_container() -> None:
    item = two()
    item["metadata"]["labels"]["marblerun/marblecontainer"] = "app"
    found = injected(item, Settings())
    assert containers(found)[0] == containers(item)[0]
    assert environment(found, 1)["EDG_MARBLE_TYPE"] == "web"


def test_several_marble_containers_get_ports_and_directories_of_their_own_and_a_warning() -> None:
    found = result(two(), Settings())
    for number, name in enumerate(("web", "app")):
        variables = environment(found.template, number)
        assert variables["EDG_MARBLE_ADMIN_ADDR"] == f"0.0.0.0:{15090 + number}"
        assert variables["EDG_MARBLE_RUN_DIR"] == f"/run/marblemesh/{name}"
    assert "2 containers get the same identity" in texts(found, Level.WARNING)[0]


def test_sidecars_of_other_meshes_and_init_containers_are_no_marbles() -> None:
    init = [{"name": "migrate", "image": "c"}]
    item = pod(containers=[{"name": "linkerd-proxy", "image": "x"}, {"name": "web", "image": "a"}], initContainers=init)
    found = injected(item, Settings())
    assert containers(found)[0] == {"name": "linkerd-proxy", "image": "x"}
    assert found["spec"]["initContainers"] == init
    assert environment(found, 1)["EDG_MARBLE_ADMIN_ADDR"] == "0.0.0.0:15090"


def test_the_worker_gets_a_directory_in_memory_probes_and_a_port_for_prometheus() -> None:
    found = injected(pod(), Settings())
    (container,) = containers(found)
    volume = {"name": "marblemesh-run", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}
    assert volume in found["spec"]["volumes"]
    assert {"name": "marblemesh-run", "mountPath": "/run/marblemesh"} in container["volumeMounts"]
    assert container["ports"] == [{"name": "mesh-admin", "containerPort": 15090, "protocol": "TCP"}]
    paths = {
        name: (container[name]["httpGet"]["path"], container[name]["httpGet"]["port"])
        for name in ("readinessProbe", "livenessProbe")
    }
    assert paths == {"readinessProbe": ("/readyz", 15090), "livenessProbe": ("/livez", 15090)}
    annotations = found["metadata"]["annotations"]
    assert {name: annotations[f"prometheus.io/{name}"] for name in ("scrape", "port", "path")} == {
        "scrape": "true",
        "port": "15090",
        "path": "/metrics",
    }


@pytest.mark.parametrize("admin", [AdminAddress("::", 9), None])
def test_the_admin_port_moves_or_goes(admin: AdminAddress | None) -> None:
    found = injected(pod(), Settings(admin=admin))
    (container,) = containers(found)
    assert environment(found).get("EDG_MARBLE_ADMIN_ADDR") == (None if admin is None else "[::]:9")
    assert ("livenessProbe" in container) == (admin is not None)
    assert ("prometheus.io/port" in found["metadata"]["annotations"]) == (admin is not None)


def with_admin(value: Any, *ports: Json) -> Json:
    env = [{"name": "EDG_MARBLE_ADMIN_ADDR", "value": value}]
    return pod(containers=[{"name": "web", "image": "a", "env": env, "ports": list(ports)}])


def test_where_the_container_says_where_its_admin_port_is_probes_go_there() -> None:
    found = injected(with_admin("[::]:9000", {"name": "numbers", "containerPort": 9000}), Settings())
    (container,) = containers(found)
    assert container["ports"] == [{"name": "numbers", "containerPort": 9000}]
    assert container["livenessProbe"]["httpGet"]["port"] == 9000
    assert found["metadata"]["annotations"]["prometheus.io/port"] == "9000"


@pytest.mark.parametrize("value", ["off", "127.0.0.1:15090", "$(POD_IP):15090", None])
def test_where_it_has_none_that_a_kubelet_reaches_there_are_no_probes(value: Any) -> None:
    found = result(with_admin(value), Settings())
    (container,) = containers(found.template)
    assert "livenessProbe" not in container
    assert "prometheus.io/port" not in found.template["metadata"]["annotations"]
    assert "probes of container web: it says itself what EDG_MARBLE_ADMIN_ADDR is" in texts(found, Level.LEFT)


@pytest.mark.parametrize("port", [9000, "numbers"])
def test_a_probe_of_the_user_s_own_that_asks_the_worker_needs_no_remark(port: Any) -> None:
    item = with_admin("0.0.0.0:9000", {"name": "numbers", "containerPort": 9000})
    containers(item)[0]["readinessProbe"] = {"httpGet": {"path": "/readyz", "port": port}}
    assert not any("mTLS" in text for text in texts(result(item, Settings()), Level.LEFT))
    containers(item)[0]["readinessProbe"] = {"tcpSocket": {"port": 8443}}
    assert any("mTLS" in text for text in texts(result(item, Settings()), Level.LEFT))


def test_a_marble_without_our_worker_gets_what_marblerun_gives() -> None:
    item = pod()
    item["metadata"]["annotations"] = {"marblemesh/worker": "disabled"}
    found = injected(item, Settings())
    plain = injected(pod(), MARBLERUN)
    assert found["spec"] == plain["spec"]


def test_wrapping_puts_the_worker_before_the_command_and_never_guesses_one() -> None:
    settings = Settings(sgx=None, wrap=True)
    item = pod(containers=[{"name": "web", "image": "a", "command": ["/bin/web"], "args": ["-v"]}])
    found = injected(item, settings)
    assert containers(found)[0]["command"] == ["marblemesh", "proxy", "run", "--", "/bin/web"]
    assert containers(found)[0]["args"] == ["-v"]
    assert containers(injected(found, settings)) == containers(found)
    bare = result(pod(), settings)
    assert "command" not in containers(bare.template)[0]
    assert "container web has no command" in texts(bare, Level.WARNING)[0]


def test_in_simulation_the_machine_is_the_one_of_the_secret() -> None:
    found = injected(pod(), Settings(sgx=None, simulation=True))
    assert environment(found)["EDG_MARBLE_SIMULATION"] == "on"
    assert environment(found)["EDG_SIMULATED_PLATFORM_DIR"] == "/simulated-platform"
    mounts = {mount["mountPath"]: mount["name"] for mount in containers(found)[0]["volumeMounts"]}
    assert mounts["/simulated-platform/identity"] == "simulated-platform"
    secret = {"name": "simulated-platform", "secret": {"secretName": "simulated-platform", "defaultMode": 0o440}}
    assert secret in found["spec"]["volumes"]


def test_a_pod_on_the_node_s_network_is_injected_with_a_warning() -> None:
    found = result(pod(hostNetwork=True), Settings())
    assert "hostNetwork: the admin port is one of the node's" in texts(found, Level.WARNING)[0]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({}, r"Missing \[marblerun/marbletype\] label, request denied"),
        ({"metadata": 7}, r"metadata is not an object"),
        ({"metadata": {"labels": []}}, r"metadata\.labels is not an object"),
        (pod(labels={LABEL: "a/b"}), r"marblerun/marbletype is 'a/b', which is no label value"),
        (pod(labels={LABEL: "../x"}), r"which is no label value"),
        (pod(containers=7), r"spec\.containers is not a list"),
        (pod(containers=["x"]), r"spec\.containers\[0\] is not an object"),
        (pod(containers=[{"image": "x"}]), r"spec\.containers: 'None' is no container name"),
        (pod(containers=[{"name": "web", "env": {}}]), r"spec\.containers\.web\.env is not a list"),
        (pod(volumes=[{"name": f"uuid-file{end}"} for end in ("", *(f"-{n}" for n in range(2, 10)))]), "are taken"),
    ],
)
def test_what_is_no_pod_is_refused_with_the_place(item: Json, message: str) -> None:
    with pytest.raises(Refused, match=message):
        inject_pod(item, Settings(), uuid_volume="uuid-file")
