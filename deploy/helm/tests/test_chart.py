"""Renders the chart with Helm's own engine, and holds what comes of it against the schemas of Kubernetes.

MOORING_INGEST and MOORING_WORKER are the programs, which must accept the configuration that they are given.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from helm_python.chart import Chart, lint
from helm_python.errors import HelmError

FOLDER = Path(__file__).parent.parent
CHART = FOLDER / "mooring"
VERSIONS = ("1.30", "1.33", "1.37")
# Of others than Kubernetes itself.
FOREIGN = ("PodMonitor", "PrometheusRule", "ScaledObject", "HTTPRoute")
SERVICES = ("ingest", "worker")

Manifest = dict[str, Any]


def example() -> Manifest:
    values: Manifest = yaml.safe_load((FOLDER / "examples/values.yaml").read_text())
    return {**values, "config": (FOLDER / "examples/mooring.toml").read_text()}


def everything() -> Manifest:
    return {
        **example(),
        "ingest": {"autoscaling": {"enabled": True}},
        "worker": {"keda": {"enabled": True, "prometheusUrl": "http://prometheus:9090"}},
        "ingress": {"enabled": True, "host": "callbacks.example.com", "tlsSecret": "tls", "className": "nginx"},
        "monitoring": {name: {"enabled": True} for name in ("podMonitor", "rules", "dashboards")},
    }


def least() -> Manifest:
    return {name: example()[name] for name in ("config", "secrets", "image", "migrate")}


VARIANTS = {"example": example, "everything": everything, "least": least}


def render(values: Manifest) -> list[Manifest]:
    with Chart.load(str(CHART)) as chart:
        files = chart.render(values=values, name="m", namespace="mooring")
    texts = [text for name, text in files.items() if not name.endswith("NOTES.txt")]
    return [it for text in texts for it in yaml.safe_load_all(text) if it]


@cache
def rendered(variant: str) -> list[Manifest]:
    return render(VARIANTS[variant]())


def find(variant: str, kind: str, name: str) -> Manifest:
    found = [it for it in rendered(variant) if it["kind"] == kind and it["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} {kind} {name}"
    return found[0]


def pods(variant: str) -> Iterator[tuple[str, Manifest]]:
    for it in rendered(variant):
        if it["kind"] in ("Deployment", "Job"):
            yield it["metadata"]["labels"]["app.kubernetes.io/component"], it["spec"]["template"]


def environment(pod: Manifest) -> dict[str, str]:
    (container,) = pod["spec"]["containers"]
    return {it["name"]: it["value"] for it in container["env"]}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_chart_has_nothing_to_complain_of(variant: str) -> None:
    report = lint(CHART, values=VARIANTS[variant]())
    assert [it["error"] for it in report["messages"]] == ["icon is recommended"], report


@pytest.mark.parametrize(("variant", "version"), list(product(VARIANTS, VERSIONS)))
def test_what_is_rendered_is_what_kubernetes_takes(variant: str, version: str) -> None:
    ours = [it for it in rendered(variant) if it["kind"] not in FOREIGN]
    assert len(ours) >= 9
    for it in ours:
        kubernetes_validate.validate(it, version, strict=True)


def test_all_there_is_can_be_switched_on() -> None:
    kinds = {it["kind"] for it in rendered("everything")}
    assert {*FOREIGN, "Ingress", "HorizontalPodAutoscaler", "NetworkPolicy", "PodDisruptionBudget"} <= kinds
    names = [(it["kind"], it["metadata"]["name"]) for it in rendered("everything")]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_container_is_hardened(variant: str) -> None:
    assert {component for component, _ in pods(variant)} == {"ingest", "worker", "migrate"}
    for _, pod in pods(variant):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not any(spec.get(it) for it in ("hostNetwork", "hostPID", "hostIPC"))
        assert not any("hostPath" in volume for volume in spec["volumes"])
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["requests"] and container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_workload_is_given_its_own_secret_and_no_other(variant: str) -> None:
    assert not any(it["kind"] == "Secret" for it in rendered(variant))
    for component, pod in pods(variant):
        secrets = [it["secret"]["secretName"] for it in pod["spec"]["volumes"] if "secret" in it]
        assert [it for it in secrets if it.startswith("mooring-") and it != "mooring-pg-ca"] == [f"mooring-{component}"]
        named = [name for name, value in environment(pod).items() if "PASSWORD" in name or "SECRET" in name]
        assert all(name.endswith("__FILE") for name in named), named


@pytest.mark.parametrize("variant", VARIANTS)
def test_selectors_find_the_pods_that_they_are_for(variant: str) -> None:
    labels = {component: pod["metadata"]["labels"] for component, pod in pods(variant)}

    def found_by(selector: Manifest) -> list[str]:
        return [component for component, of in labels.items() if selector.items() <= of.items()]

    for component in SERVICES:
        name = f"m-{component}"
        service = find(variant, "Service", name)["spec"]
        assert found_by(service["selector"]) == [component]
        deployment = find(variant, "Deployment", name)["spec"]
        assert found_by(deployment["selector"]["matchLabels"]) == [component]
        assert "app.kubernetes.io/version" not in deployment["selector"]["matchLabels"], "it cannot be changed"
        budget = find(variant, "PodDisruptionBudget", name)["spec"]
        assert found_by(budget["selector"]["matchLabels"]) == [component]
        ports = {it["name"]: it["containerPort"] for it in deployment["template"]["spec"]["containers"][0]["ports"]}
        assert {it["targetPort"] for it in service["ports"]} <= ports.keys()
        for constraint in deployment["template"]["spec"]["topologySpreadConstraints"]:
            assert found_by(constraint["labelSelector"]["matchLabels"]) == [component]
    for component in labels:
        policy = find(variant, "NetworkPolicy", f"m-{component}")["spec"]
        assert found_by(policy["podSelector"]["matchLabels"]) == [component]
        assert policy["policyTypes"] == ["Ingress", "Egress"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_probes_ask_where_the_service_listens(variant: str) -> None:
    for component, pod in pods(variant):
        if component not in SERVICES:
            continue
        (container,) = pod["spec"]["containers"]
        ports = {it["name"]: it["containerPort"] for it in container["ports"]}
        env, section = environment(pod), component.upper()
        assert env[f"MOORING__{section}__LISTEN"] == f"0.0.0.0:{ports['http']}"
        assert env[f"MOORING__{section}__ADMIN_LISTEN"] == f"0.0.0.0:{ports['admin']}"
        for probe, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
            assert container[probe]["httpGet"] == {"path": path, "port": "admin"}
        # 15 s of shutdown_timeout_ms, and 5 s for the last export.
        sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod["spec"]["terminationGracePeriodSeconds"] > sleep + 15 + 5


def test_ingest_does_not_reach_postgres_and_migrate_nothing_outside() -> None:
    def ports(component: str) -> set[int]:
        rules = find("example", "NetworkPolicy", f"m-{component}")["spec"]["egress"]
        return {port["port"] for rule in rules for port in rule["ports"]}

    assert 5432 not in ports("ingest") and 5432 in ports("worker") & ports("migrate")
    assert 443 not in ports("migrate")
    assert find("example", "NetworkPolicy", "m-migrate")["spec"].get("ingress") == []


def test_migrate_runs_first_and_has_what_it_needs_then() -> None:
    job = find("example", "Job", "m-migrate")
    volumes = {it["name"]: it for it in job["spec"]["template"]["spec"]["volumes"]}
    config = find("example", "ConfigMap", volumes["config"]["configMap"]["name"])
    policy = find("example", "NetworkPolicy", "m-migrate")
    for it in (job, config, policy):
        assert it["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    for it in (config, policy):
        assert int(it["metadata"]["annotations"]["helm.sh/hook-weight"]) < 0
    assert job["spec"]["template"]["spec"]["containers"][0]["args"] == ["migrate"]


def test_pods_are_new_when_the_configuration_is() -> None:
    changed = {**example(), "config": example()["config"] + "\n# changed"}

    def checksum(manifests: list[Manifest]) -> list[str]:
        deployments = [it for it in manifests if it["kind"] == "Deployment"]
        return [it["spec"]["template"]["metadata"]["annotations"]["checksum/config"] for it in deployments]

    before, after = checksum(rendered("example")), checksum(render(changed))
    assert len(before) == 2 and not set(before) & set(after)


def test_what_scales_by_itself_has_no_number_of_replicas() -> None:
    assert all("replicas" not in find("everything", "Deployment", f"m-{it}")["spec"] for it in SERVICES)
    replicas = [find("least", "Deployment", f"m-{it}")["spec"]["replicas"] for it in SERVICES]
    assert replicas == [3, 2]
    assert find("everything", "ScaledObject", "m-worker")["spec"]["fallback"]["replicas"] == 2


def test_rules_and_dashboards_are_those_of_the_project() -> None:
    rules = yaml.safe_load((FOLDER / "../prometheus/rules/mooring.yml").read_text())
    assert find("everything", "PrometheusRule", "m-monitoring")["spec"] == rules
    for path in (FOLDER / "../grafana/dashboards").glob("*.json"):
        data = find("everything", "ConfigMap", f"m-dashboard-{path.stem}")["data"]
        assert data[path.name].strip() == path.read_text().strip()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"config": ""}, "config"),
        ({"secrets": {"ingest": "", "worker": "w", "migrate": "m"}}, "secrets/ingest"),
        ({"ingest": {"replicas": 1}}, "ingest/replicas"),
        ({"ingest": {"replica": 3}}, "replica"),
        ({"worker": {"keda": {"enabled": True}}}, "worker/keda"),
        ({"ingress": {"enabled": True, "host": "a.example"}}, "ingress/tlsSecret"),
        ({"httpRoute": {"enabled": True, "host": "a.example", "parentRefs": []}}, "httpRoute/parentRefs"),
        ({"migrate": {"postgresUrl": ""}}, "migrate/postgresUrl"),
        ({"env": {"otel endpoint": "x"}}, "otel endpoint"),
    ],
)
def test_a_wrong_value_is_named(change: Manifest, named: str) -> None:
    with pytest.raises(HelmError) as raised:
        render({**example(), **change})
    assert named in str(raised.value).replace(".", "/"), raised.value


@pytest.mark.parametrize("component", SERVICES)
def test_the_program_accepts_what_it_is_given(component: str, tmp_path: Path) -> None:
    program = os.environ.get(f"MOORING_{component.upper()}")
    if not program:
        pytest.skip(f"MOORING_{component.upper()} is not set")
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for name in ("nats-password", "fingerprint-key", "event-key-ingest", "blnk-path-token"):
        (secrets / name).write_text("bW9vcmluZyBoZWxtIHRlc3QgbW9vcmluZyBoZWxtISE=")
    config = find("example", "ConfigMap", "m-config")["data"]["mooring.toml"]
    if component == "worker":
        (secrets / "postgres-password").write_text("password")
        generate = [program, "keys", "generate", "--file", str(secrets / "sealing-private-key")]
        public = subprocess.run(generate, check=True, capture_output=True, text=True).stdout.strip()
        config = re.sub(r"x25519-public\.[\w-]+", public, config)
    pod = dict(pods("example"))[component]
    env = {name: value.replace("/run/secrets", str(secrets)) for name, value in environment(pod).items()}
    (tmp_path / "mooring.toml").write_text(config.replace("/run/secrets", str(secrets)))
    run = subprocess.run(
        [program, "run", "--check-config", "--config", tmp_path / "mooring.toml"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
