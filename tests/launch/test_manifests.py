"""The JobSet manifests by schema, and what their fields promise; the container's files."""

import re
import shlex
import tomllib

import jsonschema
import kubernetes_validate
import pytest
import yaml
from recipes import AGAIN, LAUNCH, ROOT, parse

MANIFESTS = sorted(LAUNCH.glob("gke_*.yaml"))
KUBERNETES = "1.33"
each = pytest.mark.parametrize("path", MANIFESTS, ids=[path.stem for path in MANIFESTS])

# The fields used here, of api/jobset/v1alpha2/jobset_types.go in kubernetes-sigs/jobset. A Job's
# template is checked by Kubernetes' own schema.
NAME = {"type": "string", "pattern": "^[a-z]([a-z0-9-]*[a-z0-9])?$"}


def _object(required: list[str], **properties) -> dict:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


JOBSET = _object(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=_object(["name"], name=NAME, annotations={"type": "object"}),
    spec=_object(
        ["replicatedJobs"],
        network=_object(
            [],
            enableDNSHostnames={"type": "boolean"},
            subdomain=NAME,
            publishNotReadyAddresses={"type": "boolean"},
        ),
        failurePolicy=_object(
            [],
            maxRestarts={"type": "integer", "minimum": 0},
            restartStrategy={"enum": ["Recreate", "BlockingRecreate", "InPlaceRestart"]},
            rules={
                "type": "array",
                "items": _object(
                    ["name", "action"],
                    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
                    action={
                        "enum": [
                            *("FailJobSet", "RestartJobSet", "RestartJob"),
                            *(
                                "RestartJobSetAndIgnoreMaxRestarts",
                                "RestartJobAndIgnoreMaxRestarts",
                            ),
                        ]
                    },
                    onJobFailureReasons={
                        "type": "array",
                        "uniqueItems": True,
                        # of a Job's Failed condition
                        "items": {"enum": ["BackoffLimitExceeded", "PodFailurePolicy"]},
                    },
                    onJobFailureMessagePatterns={"type": "array", "items": {"type": "string"}},
                    targetReplicatedJobs={"type": "array", "items": NAME},
                ),
            },
        ),
        replicatedJobs={
            "type": "array",
            "minItems": 1,
            "items": _object(
                ["name", "template"],
                name=NAME,
                replicas={"type": "integer", "minimum": 1},
                template={"type": "object", "required": ["spec"]},
            ),
        },
    ),
)


def load(path) -> dict:
    return yaml.safe_load(path.read_text())


def job(path) -> dict:
    (replicated,) = load(path)["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def container(path) -> dict:
    (found,) = job(path)["template"]["spec"]["containers"]
    return found


def kubernetes_errors(spec: dict) -> str:
    """What Kubernetes' schema says of a Job, unknown fields included."""
    manifest = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": spec}
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return error.message
    return ""


@each
def test_fields_are_those_of_the_api(path):
    jsonschema.validate(load(path), JOBSET)
    assert kubernetes_errors(job(path)) == ""


def test_a_mistyped_field_would_be_seen():
    manifest, spec = load(MANIFESTS[0]), job(MANIFESTS[0])
    manifest["spec"]["failurePolicy"]["maxRestart"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxRestart"):
        jsonschema.validate(manifest, JOBSET)
    spec["template"]["spec"]["terminationGracePeriod"] = 3
    assert "terminationGracePeriod" in kubernetes_errors(spec)


@each
def test_every_process_has_an_index_and_all_end_together(path):
    spec = job(path)
    assert spec["completionMode"] == "Indexed"
    assert spec["parallelism"] == spec["completions"] > 1
    assert spec["backoffLimit"] == 0
    assert load(path)["spec"]["failurePolicy"]["restartStrategy"] == "BlockingRecreate"


@each
def test_mistakes_fail_for_good_and_the_rest_restarts(path):
    (rule,) = job(path)["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    exits = rule["onExitCodes"]
    assert (exits["containerName"], exits["operator"]) == (container(path)["name"], "In")
    assert exits["values"] == [2, 3, 4, 5]
    assert not set(exits["values"]) & set(AGAIN)
    assert job(path)["template"]["spec"]["restartPolicy"] == "Never"  # podFailurePolicy wants it
    policy = load(path)["spec"]["failurePolicy"]
    assert policy["rules"] == [
        {
            "name": "failForGood",
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy"],
        }
    ]
    assert policy["maxRestarts"] > 0


@each
def test_there_is_time_to_save_and_a_shared_place_to_save_to(path):
    pod = job(path)["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= 120
    claims = {v["name"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
    mounts = {m["mountPath"] for m in container(path)["volumeMounts"] if m["name"] in claims}
    assert mounts == {"/store"}
    paths = [word for word in container(path)["args"] if "path=" in word or "workdir=" in word]
    assert len(paths) == 2
    assert all("=/store/" in word for word in paths)


def plain(path) -> list[str]:
    """The container's arguments, as process 1 sees them."""
    return [word.replace("$(JOB_COMPLETION_INDEX)", "1") for word in container(path)["args"]]


@each
def test_flags_exist(path):
    values = parse(*plain(path))
    assert values.start_timeout > 300  # machines of a cluster come up one by one


def test_gpu_processes_meet_at_the_first_one():
    path = LAUNCH / "gke_gpu_jobset.yaml"
    values, manifest = parse(*plain(path)), load(path)
    (replicated,) = manifest["spec"]["replicatedJobs"]
    host, _, port = values.coordinator.rpartition(":")
    network = manifest["spec"]["network"]
    assert network["enableDNSHostnames"]
    assert host == f"{manifest['metadata']['name']}-{replicated['name']}-0-0.{network['subdomain']}"
    assert values.processes == job(path)["completions"]
    assert values.process == 1
    assert replicated["replicas"] == 1  # the index counts within one job
    open_ports = {p["containerPort"] for p in container(path)["ports"]}
    assert {int(port), int(port) + 1} <= open_ports


def test_tpu_slice_is_all_of_its_machines():
    path = LAUNCH / "gke_tpu_jobset.yaml"
    pod = job(path)["template"]["spec"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = int(container(path)["resources"]["limits"]["google.com/tpu"])
    rows, columns = map(int, topology.split("x"))
    assert rows * columns == chips * job(path)["completions"]
    assert not any("--process" in word for word in container(path)["args"])  # GKE says


def dockerfile() -> list[list[str]]:
    """The instructions, each as its keyword and the rest."""
    text = re.sub(r"^#.*\n", "", (LAUNCH / "Dockerfile").read_text(), flags=re.M)
    lines = text.replace("\\\n", " ").splitlines()
    return [line.split(maxsplit=1) for line in lines if line.strip()]


def test_container_runs_python_as_process_1_of_a_plain_user():
    found = dockerfile()
    last = {keyword: rest for keyword, rest in found}
    assert found[0][0] == "FROM"
    assert re.fullmatch(r"python:3\.11-slim-\w+", last["FROM"])
    assert last["ENTRYPOINT"] == '["python", "-m"]'  # exec form: a shell would swallow signals
    assert last["CMD"] == '["ctssl_jax.main", "--help"]'
    assert last["USER"].isdigit()  # Kubernetes' runAsNonRoot cannot read a name
    assert int(last["USER"]) > 0
    order = [keyword for keyword, _ in found]
    assert order.index("USER") > max(i for i, keyword in enumerate(order) if keyword == "RUN")
    assert all(k in ("FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", *last) for k in order)


def test_container_installs_the_pins_and_an_extra_that_exists():
    runs = " ".join(rest for keyword, rest in dockerfile() if keyword == "RUN")
    install = shlex.split(runs)
    assert install[:4] == ["pip", "install", "-c", "requirements.txt"]
    extras = re.fullmatch(r"\.\[(.*)\]", install[4])[1].split(",")
    extras += re.findall(r"EXTRA=(\w+)", (LAUNCH / "Dockerfile").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras) - {"${EXTRA}"} <= set(project["optional-dependencies"])


def test_image_holds_the_packages_and_nothing_else():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "**"
    kept = {line[1:] for line in lines if line.startswith("!")}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    copied = set(next(r for k, r in dockerfile() if k == "COPY").split()[:-1])
    assert kept == packages | copied
    assert all((ROOT / name).exists() for name in kept)
