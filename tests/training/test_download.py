"""Fetching: from a real HTTP server on this machine, and from a real Debian package."""

import functools
import hashlib
import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from atelier.errors import MissingInputError, StorageError
from tests.idx_files import write_idx_files
from training.download import FetchFailedError, fetch_dataset, fetch_from_debian, fetch_from_mirrors
from training.idx_files import FILES, DataFile

NO_MIRROR = "http://127.0.0.1:9/"  # the discard port: nobody listens


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A directory with the four files of a small data set, gzipped."""
    write_idx_files(tmp_path / "published", num_train=20, num_test=10, gzipped=True)
    return tmp_path / "published"


@pytest.fixture
def files(published: Path) -> list[DataFile]:
    digests = write_idx_files(published, num_train=20, num_test=10, gzipped=True)
    counts = (20, 20, 10, 10)
    return [
        DataFile(name=file.name, shape=(count, *file.shape[1:]), sha256=digests[file.name])
        for file, count in zip(FILES, counts, strict=True)
    ]


@pytest.fixture
def mirror(published: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = functools.partial(QuietHandler, directory=str(published))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "workspace").mkdir()
    return tmp_path / "workspace"


def test_files_come_from_the_first_mirror_that_answers(
    mirror: str, files: list[DataFile], workspace: Path, published: Path
) -> None:
    paths = fetch_from_mirrors(files, workspace, [NO_MIRROR, mirror])
    assert [path.name for path in paths] == [f"{file.name}.gz" for file in files]
    assert all(path.read_bytes() == (published / path.name).read_bytes() for path in paths)


def test_mirror_with_other_bytes_is_not_believed(
    mirror: str, files: list[DataFile], workspace: Path, published: Path
) -> None:
    write_idx_files(published, num_train=20, num_test=10, gzipped=True, seed=1)
    with pytest.raises(FetchFailedError, match="expected SHA-256"):
        fetch_from_mirrors(files, workspace, [mirror])


def test_mirror_that_sends_too_much_is_cut_off(
    mirror: str, files: list[DataFile], workspace: Path, published: Path
) -> None:
    path = published / f"{files[0].name}.gz"
    path.write_bytes(os.urandom(2_000_000))
    with pytest.raises(FetchFailedError, match=f"sends more than {files[0].num_bytes + 1000} bytes"):
        fetch_from_mirrors(files, workspace, [mirror])
    assert (workspace / path.name).stat().st_size < 200_000


@pytest.fixture
def debian(tmp_path: Path, published: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH on which `apt-get download` gives a package that holds `published`, as Debian's does."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("needs dpkg-deb")
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    control = "Package: dataset-fashion-mnist\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: data\n"
    (tree / "DEBIAN/control").write_text(control)
    shutil.copytree(published, tree / "usr/share/datasets/fashion-mnist")
    package = tmp_path / "dataset-fashion-mnist_1_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, package], check=True, stdout=subprocess.DEVNULL)
    apt_get = tmp_path / "bin/apt-get"
    apt_get.parent.mkdir()
    apt_get.write_text(f'#!/bin/sh\ncase "$*" in *" download dataset-fashion-mnist") cp {package} . ;; esac\n')
    apt_get.chmod(0o755)
    monkeypatch.setenv("PATH", f"{apt_get.parent}:{os.environ['PATH']}")
    return apt_get


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No mirror can be reached, and the working directory holds no data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("http_proxy", NO_MIRROR)
    monkeypatch.setenv("https_proxy", NO_MIRROR)


@pytest.mark.usefixtures("debian", "offline")
def test_debian_package_is_unpacked_where_no_mirror_answers(
    tmp_path: Path, files: list[DataFile], published: Path
) -> None:
    directory = fetch_dataset(tmp_path / "data", files)
    assert sorted(path.name for path in directory.iterdir()) == sorted(path.name for path in published.iterdir())
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}
    assert digests == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in published.iterdir()}


@pytest.mark.usefixtures("debian")
def test_debian_package_with_other_bytes_is_not_believed(files: list[DataFile], workspace: Path) -> None:
    others = [DataFile(name=file.name, shape=file.shape, sha256="0" * 64) for file in files]
    with pytest.raises(FetchFailedError, match="expected SHA-256 0000"):
        fetch_from_debian(others, workspace)


def test_apt_get_that_fails_says_why(debian: Path, files: list[DataFile], workspace: Path) -> None:
    debian.write_text("#!/bin/sh\necho 'E: Unable to locate package' >&2\nexit 100\n")
    with pytest.raises(FetchFailedError, match="apt-get: E: Unable to locate package"):
        fetch_from_debian(files, workspace)


@pytest.mark.fault("T9")
@pytest.mark.usefixtures("offline")
def test_nothing_to_fetch_from_leaves_nothing_and_says_what_was_tried(
    tmp_path: Path, files: list[DataFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingInputError, match=r"DATA_MISSING: .*fetching it failed: .*refused.*without apt-get"):
        fetch_dataset(tmp_path / "data", files)
    assert list((tmp_path / "data").iterdir()) == []


def test_data_directory_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path, files: list[DataFile]) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(StorageError, match=r"DATA_UNWRITABLE: cannot write .*/data: File exists.*--data-dir"):
        fetch_dataset(tmp_path / "data", files)
