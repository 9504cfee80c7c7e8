"""What lies in `infra/`: every file is read, names what is there, holds no secret, opens no door."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from configparser import ConfigParser
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from ruamel.yaml import YAML

from tasks.project import parse_assignment, profile_values
from tasks.register import RUNTIME
from tests.check_project import ROOT
from vdmini_core.errors import ParamsError
from vdmini_core.params import parse_params

INFRA = ROOT / "infra"
YAMLS = sorted([*INFRA.rglob("*.yaml"), ROOT / "prefect.yaml"])
KUBERNETES = sorted((INFRA / "kubernetes").glob("*.yaml"))
SECRET = re.compile(
    r"(PASSWORD|SECRET|TOKEN|_KEY|AUTH_STRING|ACCESS_KEY_ID|DATABASE_(URI|CONNECTION_URL)|STORE_URI)"
)
# An image by name and an exact version; never `latest`, a branch, or nothing.
PINNED = re.compile(r"[\w./-]+:\d[\w.-]*\.\d[\w.-]*")


@cache
def documents(path: Path) -> list[Any]:
    """Read once: tests look, and change nothing."""
    return [d for d in YAML(typ="safe", pure=True).load_all(path.read_text()) if d is not None]


def nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every mapping of a document."""
    if isinstance(tree, dict):
        yield tree
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from nodes(value)


def compose() -> dict[str, Any]:
    return documents(INFRA / "compose.yaml")[0]


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.name)
def test_yaml_is_read(path: Path) -> None:
    assert documents(path)


@pytest.mark.parametrize(
    "path", [*YAMLS, INFRA / "kubernetes" / "prefect-job-template.json"], ids=lambda p: p.name
)
def test_images_are_pinned_and_environments_hold_no_secret(path: Path) -> None:
    for node in (node for document in documents(path) for node in nodes(document)):
        image = node.get("image")
        if isinstance(image, str) and "{{" not in image:
            assert PINNED.fullmatch(image), image
        for name, value in (
            node.get("environment", {}).items() if isinstance(node.get("environment"), dict) else ()
        ):
            # Without a value it comes from the environment of `docker compose`.
            elsewhere = value is None or re.search(r"\$\{\w+:\?", str(value))
            assert not SECRET.search(name) or elsewhere, f"{name} is written out"
        if isinstance(node.get("env"), list):
            for entry in node["env"]:
                assert not SECRET.search(entry["name"]) or "valueFrom" in entry, entry


def test_compose_services_are_closed_watched_and_limited() -> None:
    services = compose()["services"]
    assert {"postgres", "s3", "mlflow", "prefect", "ray-head", "ray-worker", "prefect-worker"} <= set(
        services
    )
    for name, service in services.items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} listens to the world: {port}"
        assert name == "project" or service["healthcheck"]["test"][0] == "CMD", name
        assert service["mem_limit"] and service["cpus"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged") and service.get("network_mode") != "host", name
        for other, rule in service.get("depends_on", {}).items():
            healthy = rule["condition"] == "service_healthy"
            assert other in services and (healthy == ("healthcheck" in services[other])), f"{name}: {other}"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (INFRA / source).exists() if source.startswith(".") else source in compose()["volumes"], (
                volume
            )
    overlay = documents(INFRA / "compose.gpu.yaml")[0]["services"]
    assert set(overlay) <= set(services)


def test_the_example_environment_names_what_compose_asks_for_and_nothing_real() -> None:
    asked = set(re.findall(r"\$\{(\w+)(?::[?-])", (INFRA / "compose.yaml").read_text()))
    lines = (INFRA / ".env.example").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert set(given) == asked
    assert all(given[name] == "CHANGE_ME" for name in asked if not name.endswith(("_CPUS", "_MEMORY")))
    assert "/infra/.env" in (ROOT / ".gitignore").read_text().splitlines()
    sql = (INFRA / "postgres" / "databases.sql").read_text()
    for database in re.findall(r"@postgres:5432/(\w+)", (INFRA / "compose.yaml").read_text()):
        assert f"CREATE DATABASE {database};" in sql


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_kubernetes_objects_say_what_they_are_and_take(path: Path) -> None:
    claims, accounts = set(), set()
    for item in documents(INFRA / "kubernetes" / "base.yaml"):
        claims |= {item["metadata"]["name"]} if item["kind"] == "PersistentVolumeClaim" else set()
        accounts |= {item["metadata"]["name"]} if item["kind"] == "ServiceAccount" else set()
    for item in documents(path):
        assert item["apiVersion"] and item["kind"] and item["metadata"]["name"]
        assert item["kind"] == "Namespace" or item["metadata"]["namespace"] == "vdmini"
        for pod in (node for node in nodes(item) if isinstance(node.get("containers"), list)):
            assert pod["securityContext"]["runAsNonRoot"] and not pod.get("hostNetwork")
            assert pod.get("serviceAccountName", "vdmini") in accounts
            volumes = {volume["name"] for volume in pod.get("volumes", [])}
            for container in pod["containers"]:
                resources = container["resources"]
                assert resources["requests"]["memory"] and resources["limits"]["memory"]
                assert container["securityContext"]["allowPrivilegeEscalation"] is False
                assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
            for volume in pod.get("volumes", []):
                assert (
                    "persistentVolumeClaim" not in volume
                    or volume["persistentVolumeClaim"]["claimName"] in claims
                )


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kuberay_groups(name: str) -> None:
    document = documents(INFRA / "kubernetes" / name)[0]
    spec = document["spec"].get("rayClusterSpec", document["spec"])
    assert document["apiVersion"] == "ray.io/v1" and spec["rayVersion"] == locked("ray")
    assert spec["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0"
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    spot = groups["spot"]
    assert spot["minReplicas"] == 0 and spec["enableInTreeAutoscaling"]
    pod = spot["template"]["spec"]
    assert spot["rayStartParams"]["num-gpus"] == pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert {"nvidia.com/gpu", "vdmini/spot"} == {toleration["key"] for toleration in pod["tolerations"]}
    if wanted := document["spec"].get("entrypointResources"):
        offered = json.loads(json.loads(groups["driver"]["rayStartParams"]["resources"]))
        assert json.loads(wanted) == offered


def test_the_work_pool_template_declares_what_it_uses() -> None:
    template = json.loads((INFRA / "kubernetes" / "prefect-job-template.json").read_text())
    used = set(re.findall(r"{{ (\w+) }}", json.dumps(template["job_configuration"])))
    assert used == set(template["variables"]["properties"])
    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    # what Prefect's worker insists on
    assert (pod["parallelism"], pod["completions"], pod["restartPolicy"]) == (1, 1, "Never")
    assert pod["containers"][0]["name"] == "prefect-job"
    assert pod["securityContext"]["runAsNonRoot"]


def test_rays_launcher_takes_the_cluster_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    filled = prepare_config(deepcopy(documents(INFRA / "ray" / "cluster.yaml")[0]))
    validate_config(filled)
    types = filled["available_node_types"]
    assert types["spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert types["head"]["resources"]["GPU"] == 0
    with pytest.raises(Exception, match="max_wrkers"):
        validate_config(filled | {"max_wrkers": 1})


def test_prefects_own_model_takes_prefect_yaml() -> None:
    from prefect.cli.deploy._models import PrefectYamlModel

    from flows.compress import compress
    from flows.evaluate_registered import evaluate_registered
    from flows.promotion import promote
    from flows.quiet import _PATIENCE

    raw = documents(ROOT / "prefect.yaml")[0]
    model = PrefectYamlModel.model_validate(raw)
    assert raw["prefect-version"] == locked("prefect") and model.pull == []
    assert len({deployment.name for deployment in model.deployments}) == len(model.deployments)
    flows = {f"{f.fn.__module__}.{f.fn.__name__}": f for f in (compress, evaluate_registered, promote)}
    assert {deployment.entrypoint for deployment in model.deployments} == set(flows)
    for deployment in model.deployments:
        assert set(deployment.parameters) <= set(flows[deployment.entrypoint].parameters.properties)
        assert deployment.work_pool.job_variables == {"env": _PATIENCE}
        assert (ROOT / "profiles" / f"{deployment.parameters['profile']}.yaml").is_file()
        assert deployment.work_pool and deployment.work_pool.name == "vdmini"
        values = deepcopy(profile_values(ROOT, deployment.parameters["profile"]))
        for assignment in deployment.parameters.get("assignments", []):
            key, value = parse_assignment(assignment)
            section, field = key.split(".")
            values.setdefault(section, {})[field] = value
        parse_params(values, deployment.name or "")  # what the run would start with


def test_assignments_without_a_profile_are_refused(tmp_path: Path) -> None:
    from flows.compress import compress

    with pytest.raises(ParamsError, match="profile's workspace"):
        compress.fn(root=str(tmp_path), assignments=["distill.steps=1"])
    assert not list(tmp_path.iterdir())


def locked(name: str) -> str:
    line = re.search(rf"^{re.escape(name)}==(.+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert line is not None, name
    return line[1]


def requirements(path: Path) -> list[Requirement]:
    return [Requirement(line) for line in path.read_text().splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("name", ["cluster", "servers", "serving"])
def test_images_install_locked_versions_only(name: str) -> None:
    for requirement in requirements(INFRA / "container" / f"{name}.txt"):
        if requirement.specifier and requirement.name != "ray":
            assert [part.operator for part in requirement.specifier] == ["=="], requirement
            with pytest.raises(AssertionError):  # what the lock file holds is said there alone
                locked(requirement.name)
        else:
            assert not requirement.specifier or str(requirement.specifier) == f"=={locked('ray')}"
            assert locked(requirement.name)


def test_the_serving_image_has_what_a_version_asks_for() -> None:
    names = [requirement.name for requirement in requirements(INFRA / "container" / "serving.txt")]
    assert tuple(names[: len(RUNTIME)]) == RUNTIME and "mlflow" in names


def test_containerfile_builds_from_what_the_context_lets_in() -> None:
    text = (INFRA / "container" / "Containerfile").read_text()
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = [rule[1:] for rule in rules if rule.startswith("!")]
    assert "*" in rules and not [path for path in let_in if not (ROOT / path).exists()]
    from_context = [line for line in re.findall(r"^COPY (.+)", text, re.MULTILINE) if "--from" not in line]
    sources = [word for line in from_context for word in line.split()[:-1] if not word.startswith("--")]
    for source in sources:
        assert source == "." or any(source == path or source.startswith(f"{path}/") for path in let_in), (
            source
        )
    targets = set(re.findall(r"AS (\w+)", text))
    assert {
        service["build"]["target"] for service in compose()["services"].values() if "build" in service
    } <= targets
    after = text.split(" AS ")[2:]  # each image, base left out
    assert len(after) == 3 and all("\nUSER 1000:1000\n" in image for image in after)


SCRIPTS = [INFRA / "slurm" / "vdmini.sbatch", *sorted((INFRA / "container").glob("*.sh"))]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(path: Path) -> None:
    assert os.access(path, os.X_OK)
    shell = "bash" if "bash" in path.read_text().splitlines()[0] else "sh"
    done = subprocess.run([shell, "-n", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder of commands that write down how they were called; those of a cluster are not at hand."""
    folder = tmp_path / "venv" / "bin"
    folder.mkdir(parents=True)
    say = f'#!/bin/bash\necho "$(basename "$0") $*" >>"{tmp_path}/calls"\n'
    bodies = {
        "scontrol": '[[ $1 != show ]] || printf "n1\\nn2\\n"',
        "srun": '[[ $* != *"hostname --ip-address" ]] || echo "10.0.0.1 10.0.0.2"\n'
        '[[ $* != *"ray start"* ]] || echo "cores=${SRUN_CPUS_PER_TASK:-}" >>"${0%/venv/bin/*}/calls"',
        "ray": "",
        "mlflow": f'cp "$MLFLOW_AUTH_CONFIG_PATH" "{tmp_path}/seen.ini"; echo "$TMPDIR" >"{tmp_path}/spool"',
        # signals its parent as Slurm would, and ends as a run that was told to
        "vdmini": 'echo "ray=$RAY_ADDRESS" >>"${0%/venv/bin/*}/calls"\n'
        # the other nodes' start is a process beside this one
        'told() { grep -c "ray start" "${0%/venv/bin/*}/calls"; }\n'
        "until [[ -z ${SLURM_JOB_ID:-} ]] || (($(told) > 1)); do sleep 0.01; done\n"
        'trap "exit 143" TERM\n'
        'if [[ ${SIGNAL:-} ]]; then kill -s "$SIGNAL" "$PPID"; for _ in {1..500}; do sleep 0.01; done; fi\n'
        'exit "${STATUS:-0}"',
    }
    for name, body in bodies.items():
        (folder / name).write_text(f"{say}{body}\n")
        (folder / name).chmod(0o755)
    return folder


def run_script(path: Path, commands: Path, *arguments: str, **environment: str) -> tuple[int, list[str]]:
    root = commands.parent.parent
    done = subprocess.run(
        ["bash", str(path), *arguments],
        env={"PATH": f"{commands}:{os.environ['PATH']}", **environment},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    calls = root / "calls"
    return done.returncode, calls.read_text().splitlines() if calls.exists() else []


@pytest.mark.parametrize(
    ("signal", "status", "code", "requeued"),
    [("", "0", 0, False), ("", "1", 1, False), ("USR1", "0", 0, True), ("TERM", "0", 143, False)],
    ids=["done", "failed", "time nearly over", "cancelled"],
)
def test_the_slurm_job_starts_ray_and_requeues_only_when_time_is_up(
    commands: Path, signal: str, status: str, code: int, requeued: bool
) -> None:
    slurm = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_GPUS_ON_NODE": "8"}
    slurm["SLURM_CPUS_PER_TASK"] = "64"
    ours = {"VDMINI_PROJECT": "/shared/p", "VDMINI_VENV": str(commands.parent), "VDMINI_POLL_S": "0"}
    found, calls = run_script(
        SCRIPTS[0], commands, "--profile", "mini", **slurm, **ours, SIGNAL=signal, STATUS=status
    )
    assert found == code
    starts = [call for call in calls if call.startswith("srun") and " ray start " in call]
    assert len(starts) == 2 and "--nodelist=n1" in " ".join(starts) and "--exclude=n1" in " ".join(starts)
    assert all("--num-gpus=8" in call and "--num-cpus=64" in call for call in starts)
    assert calls.count("cores=64") == 2, "srun gives a step the job's cores only when told"
    assert "vdmini run --root /shared/p --profile mini" in calls and "ray=10.0.0.1:24711" in calls
    assert ("scontrol requeue 4711" in calls) == requeued


def test_a_driver_joins_the_cluster_without_slots_and_leaves_it(commands: Path) -> None:
    join = INFRA / "container" / "join.sh"
    code, calls = run_script(join, commands, "vdmini", "run", RAY_ADDRESS="head:6379", STATUS="3")
    assert code == 3
    assert "ray start --address=head:6379 --num-cpus=0 --num-gpus=0 --disable-usage-stats" in calls
    assert calls.index("vdmini run") < calls.index("ray stop")
    assert run_script(join, commands, "vdmini", RAY_ADDRESS="head:6379", SIGNAL="TERM")[0] == 143
    assert run_script(join, commands, "vdmini")[0] != 0  # no cluster named


def test_mlflow_reads_the_address_of_its_users_from_a_private_file(commands: Path, tmp_path: Path) -> None:
    given = {
        "TMPDIR": str(tmp_path),
        "MLFLOW_BACKEND_STORE_URI": "postgresql://u:p@postgres/mlflow",
        "MLFLOW_AUTH_DATABASE_URI": "postgresql://u:p%40q@postgres/mlflow_auth",
        "MLFLOW_AUTH_ADMIN_USERNAME": "a",
        "MLFLOW_AUTH_ADMIN_PASSWORD": "b",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "c",
    }
    script = INFRA / "container" / "mlflow.sh"
    code, calls = run_script(script, commands, "--workers=2", **given)
    assert code == 0
    assert calls == ["mlflow server --app-name basic-auth --host 0.0.0.0 --port 5000 --workers=2"]
    config = ConfigParser()
    config.read(tmp_path / "seen.ini")
    assert config["mlflow"]["database_uri"] == given["MLFLOW_AUTH_DATABASE_URI"]
    assert (tmp_path / "basic_auth.ini").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "spool").read_text().strip() == str(tmp_path)
    # What it passes on lies on a disk, its own file stays where it was.
    assert run_script(script, commands, **given, VDMINI_SPOOL="/var/lib/mlflow")[0] == 0
    assert (tmp_path / "spool").read_text().strip() == "/var/lib/mlflow"
    (compose,) = documents(INFRA / "compose.yaml")
    server = compose["services"]["mlflow"]
    assert f"mlflow-spool:{server['environment']['VDMINI_SPOOL']}" in server["volumes"]
    del given["MLFLOW_AUTH_ADMIN_PASSWORD"]
    assert run_script(script, commands, **given)[0] != 0
