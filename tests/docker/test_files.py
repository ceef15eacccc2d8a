"""What the container files promise, read from the files: pins in one place, no secret in a value, every service hardened."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from speechkd.core.files import sha256_bytes
from tests.consistency.house import ROOT

DOCKER = ROOT / "docker"
PINS = dict(line.split("=", 1) for line in (DOCKER / "images.env").read_text().splitlines() if line and not line.startswith("#"))
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
DOCKERFILES = sorted(DOCKER.glob("*Dockerfile"))


def test_images_are_pinned_in_one_place() -> None:
    assert all(re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*(@sha256:[0-9a-f]{64})?", image) for image in PINS.values()), "a tag with a version"
    named = {match for file in DOCKERFILES for match in re.findall(r"^FROM (.*)$", file.read_text(), flags=re.M)}
    assert named == {"${CUDA_IMAGE}", "${PYTHON_IMAGE}"}
    images = {service["image"] for service in COMPOSE["services"].values() if "build" not in service}
    assert {re.fullmatch(r"\$\{(\w+):\?.*\}", image).group(1) for image in images} <= set(PINS)  # type: ignore[union-attr]


def test_a_digest_is_written_behind_every_tag_or_nothing_is(tmp_path: Path) -> None:
    """docker/pin with a stand-in for the registry; a second call asks for the tags again."""
    for name in ("pin", "images.env"):
        shutil.copy(DOCKER / name, tmp_path)
    registry = tmp_path / "registry"
    registry.write_text('#!/bin/sh\nprintf "sha256:%s\\n" "$(printf "%s" "$1$SALT" | sha256sum | cut -d" " -f1)"\n')
    registry.chmod(0o755)
    for salt in ("", "moved"):
        subprocess.run([tmp_path / "pin"], env={**os.environ, "INSPECT": str(registry), "SALT": salt}, check=True)
        pins = dict(line.split("=", 1) for line in (tmp_path / "images.env").read_text().splitlines() if not line.startswith("#"))
        tags = {name: image.partition("@")[0] for name, image in PINS.items()}
        assert pins == {name: f"{tag}@sha256:{sha256_bytes(f'docker://{tag}{salt}'.encode())}" for name, tag in tags.items()}
    before = (tmp_path / "images.env").read_bytes()
    done = subprocess.run([tmp_path / "pin"], env={**os.environ, "INSPECT": "echo denied"}, capture_output=True, text=True)
    assert done.returncode == 1 and "no digest of nvidia/cuda" in done.stderr
    assert (tmp_path / "images.env").read_bytes() == before


def test_every_service_is_hardened_and_watched() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"], name
        assert service["healthcheck"]["test"], name
    assert COMPOSE["networks"]["back"] == {"internal": True}
    assert [name for name, service in COMPOSE["services"].items() if "ports" in service] == ["mlflow"]
    assert COMPOSE["services"]["mlflow"]["ports"][0].startswith("${MLFLOW_BIND:-127.0.0.1}:")


def test_no_value_is_a_secret() -> None:
    """Passwords are files; what names one in an environment names its file."""
    for service in COMPOSE["services"].values():
        for name, value in service.get("environment", {}).items():
            assert not re.search("PASSWORD|SECRET|KEY|TOKEN", name) or name.endswith("_FILE"), name
            assert "//mlflow:" not in str(value)
    for file in DOCKERFILES:
        assert not re.search(r"^(ARG|ENV) .*(PASSWORD|SECRET|TOKEN)", file.read_text(), flags=re.M)


def test_the_server_takes_its_secrets_from_files_and_has_none_in_its_arguments(tmp_path: Path) -> None:
    """docker/mlflow.sh with a stand-in for `mlflow` that writes down what it was given."""
    secrets, program = tmp_path / "secrets", tmp_path / "mlflow"
    secrets.mkdir()
    names = ("mlflow_admin_password", "mlflow_session_key", "postgres_password", "object_store_key")
    for name in names:
        (secrets / name).write_text(f"canary-{name}")
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/arguments\nenv > {tmp_path}/environment\n')
    program.chmod(0o755)
    env = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SECRETS": str(secrets),
        "ALLOWED_HOSTS": "a.example.org",
        "ALLOWED_ORIGINS": "https://a",
    }
    subprocess.run(["bash", DOCKER / "mlflow.sh"], env=env, check=True)
    arguments, environment = (tmp_path / "arguments").read_text(), (tmp_path / "environment").read_text()
    assert "canary" not in arguments and all(f"canary-{name}" in environment for name in names)
    assert {"basic-auth", "a.example.org", "--serve-artifacts", "DENY"} <= set(arguments.split())
    for setting in ("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"):
        assert f"{setting}=false" in environment
    (secrets / "postgres_password").write_text("short")
    done = subprocess.run(["bash", DOCKER / "mlflow.sh"], env=env, capture_output=True, text=True)
    assert done.returncode != 0 and "postgres_password must have at least 12 characters" in done.stderr


@pytest.mark.parametrize(
    "setting", ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "MLFLOW_DISABLE_TELEMETRY"]
)
def test_the_settings_are_ones_that_this_mlflow_knows(setting: str) -> None:
    from mlflow import environment_variables

    assert hasattr(environment_variables, setting)


def test_the_image_is_built_with_the_pins_and_nothing_else(tmp_path: Path) -> None:
    """docker/build with a stand-in for the engine."""
    engine = tmp_path / "podman"
    engine.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/arguments\n')
    engine.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "ENGINE": "podman", "HF_TOKEN": "canary-token"}
    subprocess.run(["bash", DOCKER / "build", "x:1"], env=env, check=True)
    arguments = (tmp_path / "arguments").read_text()
    assert f"CUDA_IMAGE={PINS['CUDA_IMAGE']}" in arguments and "x:1" in arguments and "canary" not in arguments
    done = subprocess.run(["bash", DOCKER / "build"], env={**env, "ENGINE": "dock"}, capture_output=True, text=True)
    assert done.returncode == 2 and "must be docker, podman or buildah" in done.stderr
