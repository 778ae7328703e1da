"""What the bytes of raw images turn into, and pictures sent in their place."""

import numpy as np
import pytest
from PIL import Image

from serving.errors import InvalidRequestError
from serving.pictures.kinds import images_from_bytes
from tests.serving.pictures import encoded, garment
from training.dataset import FashionMNIST


def test_raw_images_are_a_view_in_order() -> None:
    data = bytes(784) + bytes([7]) * 784
    found = images_from_bytes(data)
    assert found.shape == (2, 1, 28, 28)
    assert found[0].max() == 0
    assert found[1].min() == 7
    assert np.shares_memory(found, np.frombuffer(data, np.uint8))


@pytest.mark.fault("S4")
@pytest.mark.parametrize("num_bytes", [1, 783, 785, 27 * 28, 2 * 784 - 1])
def test_wrong_number_of_bytes_names_what_was_found_and_what_is_needed(num_bytes: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"BAD_IMAGE_SIZE: images is {num_bytes} bytes long.*784"):
        images_from_bytes(bytes(num_bytes))


def test_no_bytes_are_no_images() -> None:
    with pytest.raises(InvalidRequestError, match=r"NO_IMAGES: .*784"):
        images_from_bytes(b"")


def padded(data: bytes) -> bytes:
    """`data` with zeros behind it, so that it is as long as some images are."""
    return data + bytes(-len(data) % 784)


def photograph(format: str) -> bytes:
    """A picture in colours, encoded."""
    return encoded(Image.fromarray(garment()).convert("RGB"), format)


PICTURES = {
    "PNG": photograph("PNG"),
    "JPEG": photograph("JPEG"),
    "WebP": photograph("WEBP"),
    "GIF": photograph("GIF"),
    "BMP": photograph("BMP"),
    "HEIC": b"\0\0\0\x24ftypheic\0\0\0\0mif1heic",
    "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1",
}


@pytest.mark.parametrize("name", PICTURES)
def test_picture_as_long_as_images_is_not_answered_with_garments(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=rf"PICTURE_IN_IMAGES: .*{name}.*\(.*pictures\)"):
        images_from_bytes(padded(PICTURES[name]))


@pytest.mark.parametrize("name", PICTURES)
def test_picture_of_any_other_length_gets_the_same_hint(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=rf"BAD_IMAGE_SIZE: .* 783 bytes long.*{name}.*\(.*pictures\)"):
        images_from_bytes(padded(PICTURES[name])[:783])


def test_no_image_of_the_data_set_is_taken_for_a_picture(data: FashionMNIST) -> None:
    images = np.concatenate([data.train_images, data.test_images])
    assert len(images) == 70_000
    for image in images:
        assert images_from_bytes(image.tobytes()).size == 784
        assert images_from_bytes((255 - image).tobytes()).size == 784
