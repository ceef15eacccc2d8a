"""The Dockerfile of GPU nodes, built for real on a Debian base, and its command run from a read-only root as its own user.

What differs from a cluster's image: the base (debootstrap's Debian instead of CUDA on Ubuntu) and so a CPU build of torch. Needs root,
buildah and debootstrap; takes minutes and gigabytes, so it is a torture.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.consistency.house import ROOT

pytestmark = [pytest.mark.torture, pytest.mark.timeout(1500)]
CANARY = "image-canary-5d1c07a9"
BASE, IMAGE = "localhost/speechkd-base:test", "localhost/speechkd:test"
USER = 10001


def run(words: Sequence[object], timeout: float = 1200, **env: str) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=timeout, env={**os.environ, **env})
    assert done.returncode == 0, f"{words[:3]}: {done.stdout[-2000:]} {done.stderr[-3000:]}"
    return done.stdout


def debian_mirror() -> list[str]:
    """The mirror that this machine's own packages come from, if it says so."""
    text = "".join(path.read_text() for path in Path("/etc/apt/sources.list.d").glob("*.sources"))
    found = re.search(r"^URIs:\s*(\S+/debian)/?\s*$", text, flags=re.M)
    return [found.group(1)] if found else []


def pip_mounts(folder: Path) -> list[str]:
    """This machine's pip settings, mounted while the image is built: they are about where packages lie here, and enter no layer."""
    settings, mounts = ["[global]"], []
    for line in run([sys.executable, "-m", "pip", "config", "list"]).splitlines():
        key, _, value = line.partition("=")
        name, value = key.rpartition(".")[2], value.strip("'")
        if name == "cert":
            mounts.append(f"{value}:/host-certificates:ro")
            value = "/host-certificates"
        elif name not in ("index-url", "extra-index-url", "find-links", "trusted-host"):
            continue
        folders = [Path(path) for path in re.findall(r"(?:file://|^|\s)(/[\w/.-]+)", value)]
        folders = [folder.parent if folder.name == "simple" else folder for folder in folders]  # an index names files beside it
        mounts += [f"{folder}:{folder}:ro" for folder in folders if folder.is_dir()]
        settings.append(f"{name} = {value}")
    (folder / "pip.conf").write_text("\n".join(dict.fromkeys(settings)) + "\n")
    return [word for mount in dict.fromkeys([f"{folder}/pip.conf:/etc/pip.conf:ro", *mounts]) for word in ("--volume", mount)]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root of a container made from the image, mounted."""
    for tool in ("buildah", "debootstrap"):
        assert shutil.which(tool), f"`apt-get install {tool}` first"
    folder = tmp_path_factory.mktemp("image")
    run(["debootstrap", "--variant=minbase", "bookworm", folder / "base", *debian_mirror()])
    (folder / "base/etc/hosts").write_text("127.0.0.1 localhost\n")  # as every container engine provides
    base = run(["buildah", "from", "scratch"]).strip()
    run(["buildah", "copy", "--quiet", base, folder / "base", "/"])
    run(["buildah", "commit", "--quiet", "--rm", base, BASE])
    shutil.rmtree(folder / "base")
    secret = {"AWS_SECRET_ACCESS_KEY": CANARY, "MLFLOW_TRACKING_PASSWORD": CANARY, "HF_TOKEN": CANARY}
    arguments = ["--build-arg", f"CUDA_IMAGE={BASE}", "--build-arg", "TORCH=torch==2.13.0", "--build-arg", "REVISION=test"]
    words = ["buildah", "bud", "--isolation", "chroot", "--layers", *pip_mounts(folder), *arguments, "--file", "docker/Dockerfile"]
    run([*words, "--ignorefile", "docker/Dockerfile.dockerignore", "--tag", IMAGE, ROOT], **secret)
    container = run(["buildah", "from", IMAGE]).strip()
    root = Path(run(["buildah", "mount", container]).strip())
    yield root
    run(["buildah", "umount", container])
    run(["buildah", "rm", container])


def inside(root: Path, *command: str) -> str:
    """Run a command in a chroot whose root is read only, with a tmpfs at /tmp, without a network, as the image's user."""
    variables = json.loads(run(["buildah", "inspect", "--type", "image", IMAGE]))["OCIv1"]["config"]["Env"]
    script = (
        'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && mount -t tmpfs -o mode=1777 tmp "$1/tmp" '
        '&& mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && root=$1 && shift && ip link set lo up '
        f'&& exec chroot --userspec={USER}:{USER} "$root" /usr/bin/env -i "$@"'
    )
    words = ["unshare", "--mount", "--net", "--pid", "--fork", "sh", "-c", script, "sh", root, *variables]
    return run([*words, "/bin/sh", "-c", 'cd /opt/speechkd && exec "$@"', "sh", *command], timeout=300)


def test_its_command_runs_read_only_without_network_as_nobody(image: Path) -> None:
    assert "doctor" in inside(image, "speechkd", "--help")
    assert inside(image, "id", "-u").strip() == str(USER)
    report = json.loads(inside(image, "speechkd", "doctor", "--run-folder", "/tmp", "--json"))
    assert report["counts"]["fail"] == 0
    assert inside(image, "sh", "-c", "touch /opt/speechkd/x 2>/dev/null || echo refused").strip() == "refused"


def test_it_says_what_it_is_and_where_it_came_from(image: Path) -> None:
    config = json.loads(run(["buildah", "inspect", "--type", "image", IMAGE]))["OCIv1"]["config"]
    labels = {name.rpartition(".")[2]: value for name, value in config["Labels"].items() if name.startswith("org.opencontainers.image")}
    assert labels["title"] == "speechkd" and labels["licenses"] == "Apache-2.0" and labels["revision"] == "test"
    assert config["User"] == f"{USER}:{USER}" and config["Entrypoint"] == ["speechkd"] and "HF_HUB_OFFLINE=1" in config["Env"]


def test_no_layer_and_no_setting_holds_a_secret_of_the_builder(image: Path, tmp_path: Path) -> None:
    run(["buildah", "push", "--quiet", IMAGE, f"oci:{tmp_path}/oci:test"])
    blobs = list((tmp_path / "oci/blobs/sha256").iterdir())
    assert len(blobs) > 3 and not [blob.name for blob in blobs if holds(blob, CANARY.encode())]
    assert [
        blob.name for blob in blobs if holds(blob, b"A crafted file") or holds(blob, b"CVE-2026-24747")
    ], "text of a layer is found this way"


def holds(path: Path, text: bytes) -> bool:
    """Whether a file of any size has these bytes in it, packed or not."""
    with path.open("rb") as plain:
        packed = plain.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as stream:
        before = b""
        while chunk := stream.read(1 << 24):
            if text in before + chunk:
                return True
            before = chunk[-len(text) :]
    return False
