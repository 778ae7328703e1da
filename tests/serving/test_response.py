"""What is written without message objects is what protobuf reads, and would have written."""

import numpy as np
import pytest

from atelier.wire import classifier_pb2 as pb
from serving.batching.request import Answer
from serving.frontends.grpcio.responses import MANY_IMAGES, ResponseWriter, rank

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@pytest.mark.parametrize("top_k", [1, 2, 10])
@pytest.mark.parametrize("num_images", [1, 2, MANY_IMAGES - 1, MANY_IMAGES, 64, 1024])
def test_written_message_is_the_one_that_protobuf_makes(num_images: int, top_k: int) -> None:
    logits = np.random.default_rng(num_images).normal(0, 5, (num_images, 10)).astype(np.float32)
    written = ResponseWriter("lenet5", "12", CLASSES).write(Answer(logits, 300, 0, 1_000), top_k)
    expected = pb.ClassifyResponse(
        model_name="lenet5",
        model_version="12",
        time=pb.TimeSplit(queue_us=300, batch_size=1_000),
        classifications=[
            pb.Classification(
                predictions=[
                    pb.Prediction(label=label, name=CLASSES[label], probability=probability)
                    for label, probability in rank(row, top_k)
                ]
            )
            for row in logits.tolist()
        ],
    )
    assert pb.ClassifyResponse.FromString(written) == expected


@pytest.mark.parametrize("label", range(10))
@pytest.mark.parametrize("num_images", [1, MANY_IMAGES])
def test_every_class_can_be_the_best_and_certain(label: int, num_images: int) -> None:
    logits = np.zeros((num_images, 10), np.float32)
    logits[:, label] = 3e4
    response = pb.ClassifyResponse.FromString(
        ResponseWriter("lenet5", "1", CLASSES).write(Answer(logits, 0, 0, num_images), 1)
    )
    for classification in response.classifications:
        (prediction,) = classification.predictions
        assert (prediction.label, prediction.name, prediction.probability) == (label, CLASSES[label], 1.0)
    assert len(response.classifications) == num_images
