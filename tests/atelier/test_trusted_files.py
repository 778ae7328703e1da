"""What lies in place of a file is not read, and nobody waits for it."""

import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from atelier.errors import BadDataError, PermissionRefusedError
from atelier.trusted_files import read_trusted


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "models" / "lenet5" / "1").mkdir(parents=True)
    return tmp_path / "models"


@pytest.fixture
def path(root: Path) -> Path:
    path = root / "lenet5" / "1" / "model.onnx"
    path.write_bytes(b"model")
    return path


def refusal_of(path: Path, root: Path) -> str:
    with pytest.raises(PermissionRefusedError, match="UNTRUSTED_FILE") as refused:
        read_trusted(path, root, 100)
    assert refused.value.exit_code == os.EX_NOPERM
    return str(refused.value)


def test_file_is_read_and_a_missing_one_is_missing(path: Path, root: Path) -> None:
    assert read_trusted(path, root, 5) == b"model"
    with pytest.raises(BadDataError, match=r"TOO_LARGE: .* has 5 bytes, the limit is 4"):
        read_trusted(path, root, 4)
    with pytest.raises(FileNotFoundError):
        read_trusted(path.with_name("other"), root, 5)


@pytest.mark.timeout(10)
def test_fifo_is_not_waited_for(path: Path, root: Path) -> None:
    path.unlink()
    os.mkfifo(path)
    assert "is a FIFO, no regular file" in refusal_of(path, root)


@pytest.fixture
def short_root() -> Iterator[Path]:
    root = Path(f"/tmp/atelier-{os.getpid()}")  # noqa: S108 - a socket's path must be short
    root.mkdir(mode=0o700)
    yield root
    shutil.rmtree(root)


def test_socket_directory_and_device_are_no_files(path: Path, root: Path, short_root: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_root / "socket"))
        assert "is a socket" in refusal_of(short_root / "socket", short_root)
    assert "is a directory" in refusal_of(path.parent, root)
    assert "is a device" in refusal_of(Path("/dev/zero"), Path("/dev"))


@pytest.mark.fault("O10")
def test_links_lead_about_in_the_repository_but_not_out(path: Path, root: Path) -> None:
    outside = root.parent / "secret"
    outside.write_bytes(b"model")
    for target in (outside, "../../../secret"):
        link = path.with_name(f"link{len(str(target))}")
        link.symlink_to(target)
        assert "outside of" in refusal_of(link, root)
    (root / "lenet5" / "2").symlink_to(root.parent)
    assert "outside of" in refusal_of(root / "lenet5" / "2" / "secret", root)
    (root / "lenet5" / "3").symlink_to("1")
    assert read_trusted(root / "lenet5" / "3" / "model.onnx", root, 100) == b"model"
    (root.parent / "repository").symlink_to(root)
    assert read_trusted(root.parent / "repository" / "lenet5" / "1" / "model.onnx", root, 100) == b"model"
    link = path.with_name("loop")
    link.symlink_to("loop")
    assert "leads back to itself" in refusal_of(link, root)


def test_volume_as_kubernetes_makes_it_from_a_config_map_is_read(path: Path, root: Path) -> None:
    """`lenet5 -> ..data/lenet5` and `..data -> ..<time>`, so that all files change at once."""
    (root / "..2026_11_26").mkdir()
    (root / "lenet5").rename(root / "..2026_11_26" / "lenet5")
    (root / "..data").symlink_to("..2026_11_26")
    (root / "lenet5").symlink_to("..data/lenet5")
    assert path.resolve().parts[-4:] == ("..2026_11_26", "lenet5", "1", "model.onnx")
    assert read_trusted(path, root, 100) == b"model"


@pytest.mark.fault("O10")
def test_what_everybody_can_write_is_refused_from_the_repository_down(path: Path, root: Path) -> None:
    for part in (path, path.parent, path.parent.parent, root):
        before = stat.S_IMODE(part.stat().st_mode)
        part.chmod(before | stat.S_IWOTH)
        assert f"{part} can be written by every user" in refusal_of(path, root)
        part.chmod(before | stat.S_IWGRP)
        assert read_trusted(path, root, 100) == b"model"
        part.chmod(before)
    root.parent.chmod(0o1777)  # as /tmp
    assert read_trusted(path, root, 100) == b"model"


READ_MOUNTED = """
import sys
from pathlib import Path
from atelier.trusted_files import read_trusted
root = Path(sys.argv[1])
print(read_trusted(root / "lenet5/1/model.onnx", root, 100).decode())
"""


def test_what_is_mounted_read_only_may_have_any_mode(path: Path, root: Path) -> None:
    """As volumes of Kubernetes are: the root of an emptyDir has mode 777."""
    for part in (root, path.parent):
        part.chmod(0o777)
    script = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && exec "$2" -c "$3" "$1"'
    arguments = [str(root), shutil.which("python3") or "python3", READ_MOUNTED]
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"needs mount namespaces: {done.stderr.strip()}")
    assert done.stdout.strip() == "model", done.stderr
