"""Where the dataset is looked for, and what is refused."""

import dataclasses
import hashlib
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from atelier.errors import BadDataError, MissingInputError
from atelier.program import run_program
from tests.idx_files import idx_bytes, write_idx_files
from tests.reliability.plugin import Figure
from training import dataset
from training.dataset import CLASSES, load_dataset
from training.idx_files import FILES, PLACES, DataFile, find_dataset, read_verified

SYSTEM_PLACE = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, and nothing set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASHION_MNIST_DIR", raising=False)


@pytest.mark.parametrize("gzipped", [False, True])
def test_images_and_labels_have_the_shapes_that_every_program_expects(gzipped: bool) -> None:
    digests = write_idx_files(Path("chosen"), num_train=30, num_test=20, gzipped=gzipped)
    data = load_dataset(Path("chosen"), verify=False)
    assert data.train_images.shape == (30, 1, 28, 28) and data.train_images.dtype == np.uint8
    assert data.test_images.shape == (20, 1, 28, 28) and data.test_labels.shape == (20,)
    assert data.digests == digests
    assert (data.source, data.verified) == (Path("chosen"), False)
    assert (data.train_images[np.arange(30), 0, 4 + 2 * data.train_labels] == 255).all()  # each with its own label


def test_classes_are_the_ten_garments_in_order() -> None:
    assert len(CLASSES) == 10
    assert (CLASSES[0], CLASSES[6], CLASSES[9]) == ("T-shirt/top", "Shirt", "Ankle boot")


def test_places_are_looked_at_in_order() -> None:
    assert (Path("data"), SYSTEM_PLACE, Path("data/FashionMNIST/raw")) == PLACES
    write_idx_files(Path("data/FashionMNIST/raw"))
    assert find_dataset() == (SYSTEM_PLACE if SYSTEM_PLACE.exists() else Path("data/FashionMNIST/raw"))
    write_idx_files(Path("data"))
    assert find_dataset() == Path("data")


def test_environment_names_the_directory_and_the_option_overrules_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("data", "from_environment", "from_option"):
        write_idx_files(Path(place))
    monkeypatch.setenv("FASHION_MNIST_DIR", "from_environment")
    assert find_dataset() == Path("from_environment")
    assert find_dataset(Path("from_option")) == Path("from_option")


def test_chosen_directory_that_lacks_a_file_is_an_error_though_another_has_all() -> None:
    write_idx_files(Path("data"))
    write_idx_files(Path("chosen"))
    Path("chosen/t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(
        MissingInputError, match=r"DATA_MISSING: .*chosen \(no t10k-labels-idx1-ubyte, gzipped or not\)"
    ):
        load_dataset(Path("chosen"))


def test_chosen_directory_without_any_file_lists_the_names_looked_for() -> None:
    Path("chosen").mkdir()
    Path("chosen/train-images.gz").touch()
    with pytest.raises(MissingInputError) as caught:
        load_dataset(Path("chosen"))
    assert f"chosen (no {', '.join(file.name for file in FILES)}, gzipped or not)" in str(caught.value)


@pytest.mark.parametrize("place", ["data", "--data-dir", "FASHION_MNIST_DIR"])
def test_link_that_leads_nowhere_is_called_that_and_nothing_is_fetched(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("data").symlink_to("/mnt/no such disk/fashion")
    if place == "FASHION_MNIST_DIR":
        monkeypatch.setenv(place, "data")
    with pytest.raises(MissingInputError) as caught:
        load_dataset(Path("data") if place == "--data-dir" else None)
    assert "data (a dangling link to /mnt/no such disk/fashion)" in str(caught.value)


def test_file_that_is_a_link_to_nowhere_is_called_that() -> None:
    write_idx_files(Path("data"))
    Path("data/t10k-labels-idx1-ubyte").unlink()
    Path("data/t10k-labels-idx1-ubyte.gz").symlink_to("gone.gz")
    with pytest.raises(MissingInputError, match=r"\(no t10k-labels-idx1-ubyte as a dangling link to gone.gz, gzipped"):
        load_dataset(Path("data"))


@pytest.mark.parametrize(("name", "complaint"), [("nowhere", "does not exist"), ("file", "no directory")])
def test_chosen_place_that_is_no_directory_is_called_that(name: str, complaint: str) -> None:
    Path("file").touch()
    with pytest.raises(MissingInputError, match=rf"{name} \({complaint}\)"):
        load_dataset(Path(name))


@pytest.mark.fault("T9")
@pytest.mark.skipif(SYSTEM_PLACE.exists(), reason="this machine has Fashion-MNIST")
def test_missing_data_lists_the_places_and_the_cures() -> None:
    with pytest.raises(MissingInputError) as caught:
        load_dataset(fetch=False)
    for words in (
        "data (does not exist)",
        "/usr/share/datasets/fashion-mnist",
        "--data-dir",
        "FASHION_MNIST_DIR",
        "make data",
    ):
        assert words in str(caught.value)


def test_well_formed_data_that_is_not_fashion_mnist_is_refused() -> None:
    write_idx_files(Path("data"))
    with pytest.raises(BadDataError, match="train-images-idx3-ubyte: expected 47040016 bytes, found 470416"):
        load_dataset()


def verified_file(path: Path, num_labels: int = 100, first: int = 0) -> DataFile:
    """What `path`, so many labels, must be."""
    data = idx_bytes((np.arange(num_labels) + first).astype(np.uint8) % 10)
    path.write_bytes(data)
    return DataFile(name=path.name, shape=(num_labels,), sha256=hashlib.sha256(data).hexdigest())


def test_file_with_the_right_digest_is_accepted() -> None:
    file = verified_file(Path("labels"))
    assert len(read_verified(Path("labels"), file)) == file.num_bytes == 108


@pytest.mark.fault("T6")
@pytest.mark.goal("G17", of="flips of a file of the data set", ci=100, release=10_000)
def test_every_flipped_bit_is_refused(size: int, figure: Figure) -> None:
    path = Path("labels")
    file = verified_file(path, num_labels=2000)
    good = path.read_bytes()
    for position in random.Random(0).sample(range(8 * len(good)), size):
        data = bytearray(good)
        data[position // 8] ^= 1 << position % 8
        path.write_bytes(data)
        with pytest.raises(BadDataError, match=f"labels: expected SHA-256 {file.sha256}, found"):
            read_verified(path, file)
    figure(f"0 of {size:,} accepted")


@pytest.mark.fault("T6")
def test_files_that_are_swapped_are_refused() -> None:
    """Of the same size: the published files differ in that too."""
    one, other = verified_file(Path("one")), verified_file(Path("other"), first=1)
    Path("one").rename("held")
    Path("other").rename("one")
    Path("held").rename("other")
    for file in (one, other):
        with pytest.raises(BadDataError, match=f"BAD_DATASET: {file.name}: expected SHA-256 {file.sha256}, found"):
            read_verified(Path(file.name), file)


@pytest.mark.fault("T7")
def test_label_that_is_no_class_is_refused_with_its_index() -> None:
    write_idx_files(Path("data"), num_test=5)
    labels = np.array([0, 9, 10, 1, 2], dtype=np.uint8)
    Path("data/t10k-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    with pytest.raises(BadDataError, match="t10k-labels-idx1-ubyte: expected labels from 0 to 9, found 10 at 2"):
        load_dataset(verify=False)


@pytest.mark.fault("T7")
def test_labels_that_do_not_match_the_images_in_number_are_refused() -> None:
    write_idx_files(Path("data"), num_train=10)
    Path("data/train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(9, dtype=np.uint8)))
    with pytest.raises(BadDataError, match="expected 10 labels, one for each image, found 9"):
        load_dataset(verify=False)


def test_table_is_that_of_the_published_files() -> None:
    assert [file.num_bytes for file in FILES] == [47_040_016, 60_008, 7_840_016, 10_008]
    assert all(len(file.sha256) == 64 for file in FILES)
    assert len({dataclasses.astuple(file) for file in FILES}) == 4


def test_command_ends_with_one_line_and_exit_code_65(capsys: pytest.CaptureFixture[str]) -> None:
    write_idx_files(Path("chosen"))
    assert run_program(dataset.main, ["--data-dir", "chosen"]) == 65
    error = capsys.readouterr().err
    assert error.startswith("error: BAD_DATASET: chosen/train-images-idx3-ubyte") and error.count("\n") == 1


def test_dataset_needs_no_torch() -> None:
    code = "import sys, training.dataset; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
