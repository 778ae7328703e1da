"""`atelier classify --out`: folders and Parquet files of pictures, labelled by a real server."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from atelier.classify import main
from atelier.client import Client
from atelier.program import run_program
from loadtest.server_process import ServerProcess, free_port, server_process
from tests.atelier.scripted_server import ScriptedServer
from tests.test_docs import commands_of

PICTURE_COLUMNS = ["predicted_label", "predicted_name", "probability", "model_version", "error"]


@pytest.fixture(scope="module")
def served(small_repository: Path) -> Iterator[ServerProcess]:
    settings = ("--repository", str(small_repository), "--port", "0", "--device", "cpu")
    with server_process("serving", *settings) as server:
        yield server


def picture(seed: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (40, 30), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


Classify = Callable[..., str]


@pytest.fixture
def classify(capsys: pytest.CaptureFixture[str]) -> Classify:
    def classified(target: str, *arguments: object, exit_code: int = 0) -> str:
        """What the command says."""
        assert run_program(main, ["--target", target, *map(str, arguments)], extras="bulk") == exit_code
        return "".join(capsys.readouterr())

    return classified


def said_of(target: str, contents: list[bytes]) -> list[tuple[int, str]]:
    """What the client's own call says of the same pictures."""
    with Client(target) as client:
        answers = [client.classify_pictures(content).classifications[0][0] for content in contents]
    return [(answer.label, answer.name) for answer in answers]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """150 pictures, more than go into one request, in two folders; 3 that cannot be read; and what is no picture."""
    folder = tmp_path / "pictures"
    (folder / "below" / "deep").mkdir(parents=True)
    for index in range(150):
        place = folder / "below" / "deep" if index % 2 else folder
        kind = ("PNG", "JPEG", "WEBP")[index % 3]
        (place / f"{index:03}.{kind.lower()}").write_bytes(picture(index, kind))
    (folder / "broken.PNG").write_bytes(picture(0)[:60])
    (folder / "below" / "text.jpg").write_text("no picture")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "notes.txt").write_text("not looked at")
    return folder


@pytest.mark.slow
def test_folder_is_labelled_as_its_pictures_are_one_by_one(
    classify: Classify, served: ServerProcess, folder: Path, tmp_path: Path
) -> None:
    errors = classify(served.target, "--out", tmp_path / "labels.parquet", folder, exit_code=os.EX_DATAERR)
    assert "error: BAD_PICTURES: 3 of 153 pictures have no label (the column error of" in errors
    table = pq.read_table(tmp_path / "labels.parquet")
    assert table.column_names == ["path", *PICTURE_COLUMNS]
    rows = {row["path"]: row for row in table.to_pylist()}
    bad = {path: row["error"].split(":")[0] for path, row in rows.items() if row["error"] is not None}
    assert bad == {"broken.PNG": "BAD_PICTURE", "below/text.jpg": "BAD_PICTURE", "gone.png": "NO_PICTURE"}
    good = sorted(set(rows) - set(bad))
    assert len(good) == 150 and "below/deep/001.jpeg" in good
    labels = [(rows[path]["predicted_label"], rows[path]["predicted_name"]) for path in good]
    assert labels == said_of(served.target, [(folder / path).read_bytes() for path in good])
    assert {rows[path]["model_version"] for path in good} == {"1"}
    assert all(0 < rows[path]["probability"] <= 1 for path in good)


@pytest.mark.slow
def test_csv_and_json_lines_say_the_same(
    classify: Classify, served: ServerProcess, folder: Path, tmp_path: Path
) -> None:
    for name in ("labels.parquet", "labels.csv", "labels.jsonl"):
        classify(served.target, "--out", tmp_path / name, folder, exit_code=os.EX_DATAERR)
    wanted = [(row["path"], row["predicted_label"]) for row in pq.read_table(tmp_path / "labels.parquet").to_pylist()]
    csv = pyarrow.csv.read_csv(tmp_path / "labels.csv").to_pylist()
    lines = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    for rows in (csv, lines):
        assert sorted((row["path"], row["predicted_label"]) for row in rows) == sorted(wanted)


def test_names_of_any_encoding_are_asked_about_and_what_is_no_file_is_not(
    classify: Classify, served: ServerProcess, tmp_path: Path
) -> None:
    (tmp_path / "pictures").mkdir()
    for name in (b"\xe9t\xe9.png", "冬.png".encode()):
        Path(os.fsdecode(os.fsencode(tmp_path / "pictures") + b"/" + name)).write_bytes(picture(1))
    os.mkfifo(tmp_path / "pictures" / "pipe.png")  # whoever opens it waits for ever
    classify(served.target, "--out", tmp_path / "labels.csv", tmp_path / "pictures")
    rows = pyarrow.csv.read_csv(tmp_path / "labels.csv").to_pylist()
    assert sorted(row["path"] for row in rows) == [r"\xe9t\xe9.png", "冬.png"]


@pytest.mark.parametrize("form", ["bytes", "Hugging Face's"])
def test_rows_of_a_parquet_file_keep_their_other_columns(
    classify: Classify, served: ServerProcess, tmp_path: Path, form: str
) -> None:
    contents: list[Any] = [picture(seed) for seed in range(5)]
    column = [*contents, b"no picture", None]
    images = pa.array([{"bytes": value, "path": None} for value in column] if form != "bytes" else column)
    pq.write_table(pa.table({"label": list(range(7)), "image": images}), tmp_path / "in.parquet")
    out = tmp_path / "labels.parquet"
    classify(served.target, "--out", out, tmp_path / "in.parquet", exit_code=os.EX_DATAERR)
    table = pq.read_table(out)
    assert table.column_names == ["label", *PICTURE_COLUMNS]
    assert table["label"].to_pylist() == list(range(7))
    labels = table["predicted_label"].to_pylist()
    assert labels == [label for label, _ in said_of(served.target, contents)] + [None, None]
    errors = table["error"].to_pylist()
    assert errors[:5] == [None] * 5 and errors[5].startswith("BAD_PICTURE") and errors[6].startswith("NO_PICTURE")


@pytest.mark.slow
def test_picture_that_no_message_could_carry_is_a_row_with_the_reason(
    classify: Classify, small_repository: Path, tmp_path: Path
) -> None:
    (tmp_path / "pictures").mkdir()
    for index in range(3):
        (tmp_path / "pictures" / f"{index}.png").write_bytes(picture(index) + bytes(2_000_000 if index == 1 else 0))
    settings = ("--repository", str(small_repository), "--port", "0", "--max-message-bytes", "1000000")
    with server_process("serving", *settings) as server:
        classify(server.target, "--out", tmp_path / "l.jsonl", tmp_path / "pictures", exit_code=os.EX_DATAERR)
    rows = {row["path"]: row["error"] for row in map(json.loads, (tmp_path / "l.jsonl").read_text().splitlines())}
    assert rows["0.png"] is None and rows["2.png"] is None
    assert rows["1.png"].startswith("MESSAGE_TOO_LARGE: the picture has more than 900000 bytes")


def test_commands_of_the_docs_do_what_they_say(
    classify: Classify, served: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(picture(1))
    pq.write_table(pa.table({"image": [picture(1)]}), "train-00000-of-00001.parquet")
    commands = commands_of("clients.md", "A folder or a Parquet file of pictures")
    asked = [shlex.split(command)[2:] for command in commands if command.startswith("atelier classify")]
    assert len(asked) == 3 and "--ray" in asked.pop()  # which test_bulk_on_ray.py tries
    for words in asked:
        local = [f"{served.target},{served.target}" if "," in word else word for word in words]
        out = words[words.index("--out") + 1]
        assert f"atelier: {out} has the labels of 1 picture\n" in classify(served.target, *local)
        assert Path(out).exists()


# --- What cannot be done ---------------------------------------------------------------------------------------------


def test_failure_midway_ends_with_one_line_and_leaves_no_file(
    classify: Classify, server: ScriptedServer, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"image": [bytes([index % 9]) for index in range(2000)]}), tmp_path / "in.parquet")
    server.after[12] = (grpc.StatusCode.INTERNAL, "MODEL_FAILED: the batch failed")
    errors = classify(server.target, "--out", tmp_path / "l.csv", tmp_path / "in.parquet", exit_code=os.EX_SOFTWARE)
    assert errors == "error: MODEL_FAILED: the batch failed\n"
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]


def test_busy_server_is_asked_again(classify: Classify, server: ScriptedServer, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [bytes([index]) for index in range(9)]}), tmp_path / "in.parquet")
    server.script = [(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL: 4096 images wait")] * 3
    classify(server.target, "--out", tmp_path / "l.parquet", tmp_path / "in.parquet")
    assert pq.read_table(tmp_path / "l.parquet")["predicted_label"].to_pylist() == list(range(9))


def test_what_cannot_be_done_is_said_before_anything_is_asked(classify: Classify, folder: Path, tmp_path: Path) -> None:
    taken, two, text = (tmp_path / name for name in ("taken.parquet", "two.parquet", "text.parquet"))
    pq.write_table(pa.table({"image": [b"x"], "error": ["mine"]}), taken)
    pq.write_table(pa.table({"left": [b"x"], "right": [b"x"]}), two)
    text.write_text("no Parquet")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "labels.csv"
    cases: list[tuple[list[object], int, str]] = [
        (["--out", tmp_path / "labels.xlsx", folder], 2, "BAD_OUT"),
        (["--out", tmp_path / "no" / "labels.csv", folder], os.EX_NOINPUT, "NO_FOLDER"),
        (["--out", out], 2, "BAD_BULK"),
        (["--ray", "auto", folder], 2, "BAD_BULK"),
        (["--out", out, tmp_path / "missing"], os.EX_NOINPUT, "NO_PICTURES"),
        (["--out", out, tmp_path / "empty"], os.EX_DATAERR, "NO_PICTURES"),
        (["--out", out, text], os.EX_DATAERR, "BAD_PARQUET: .* cannot be read as Parquet"),
        (["--out", out, two], os.EX_DATAERR, "BAD_PARQUET: .* 2 columns that may be pictures"),
        (["--out", out, taken], os.EX_DATAERR, "BAD_PARQUET: .* has a column error already"),
        (["--out", out, folder], os.EX_UNAVAILABLE, "NO_SERVER"),
    ]
    for arguments, exit_code, error in cases:
        errors = classify(f"127.0.0.1:{free_port()}", *arguments, exit_code=exit_code)
        assert errors.count("\n") == 1
        assert re.match(f"error: {error}", errors), errors
    assert not out.exists()


# --- Memory ----------------------------------------------------------------------------------------------------------


PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_pictures(served: ServerProcess, tmp_path: Path) -> None:
    """1,600 pictures of 50 kB are 80 MB more than 400, of which 256 are under way at a time."""

    def peak_mb(number: int) -> int:
        folder = tmp_path / str(number)
        folder.mkdir()
        for index in range(number):
            (folder / f"{index}.png").write_bytes(picture(index % 50) + bytes(50_000))
        command = [sys.executable, "-m", "atelier", "classify", "--target", served.target, "--out"]
        asked = [sys.executable, "-c", PEAK, *command, str(tmp_path / f"{number}.parquet"), str(folder)]
        peak = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        assert pq.read_table(tmp_path / f"{number}.parquet").num_rows == number
        return int(peak.splitlines()[-1])

    few, many = peak_mb(400), peak_mb(2000)
    assert many < few + 50, (few, many)
