import io
import zipfile

import numpy as np
import pytest
import torch

from atelier.errors import BadDataError
from export.torch_program import program_bytes, program_from_model
from serving.manifest import PROGRAM_NAME
from tests.export.small_model import MAX_BATCH_SIZE, exported_files, noise_images, seeded_model


def test_program_answers_as_the_model_does_at_every_batch_size() -> None:
    program = torch.export.load(io.BytesIO(exported_files()[PROGRAM_NAME])).module()
    for batch_size in (1, 2, 3, MAX_BATCH_SIZE):
        images = torch.tensor(noise_images(batch_size))
        with torch.inference_mode():
            np.testing.assert_allclose(program(images), seeded_model()(images), rtol=1e-6, atol=1e-6)


def test_program_for_single_images_can_be_made() -> None:
    program = program_from_model(seeded_model(), max_batch_size=1)
    logits = program.module().forward(torch.tensor(noise_images(1)))
    assert logits.shape == (1, 10)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(value: float) -> None:
    model = seeded_model()
    model.get_parameter("layers.linear2.bias").data[3] = value
    with pytest.raises(BadDataError, match=r"NON_FINITE: .*layers\.linear2\.bias"):
        program_from_model(model, MAX_BATCH_SIZE)


def test_program_file_holds_no_path_of_this_machine() -> None:
    with zipfile.ZipFile(io.BytesIO(exported_files()[PROGRAM_NAME])) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert b"model.py" not in content
    assert b"site-packages" not in content


def test_same_weights_give_the_same_program_file() -> None:
    assert program_bytes(program_from_model(seeded_model(), MAX_BATCH_SIZE)) == exported_files()[PROGRAM_NAME]
