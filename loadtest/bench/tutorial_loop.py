"""The yardstick for training: the tutorial's own loop, image by image, as it stands in its chapter.

python -m loadtest.bench.tutorial_loop DIR EPOCHS, where DIR holds FashionMNIST/raw

torchvision's data set and ToTensor, a DataLoader, and per batch forward, loss, backward, step, with loss and accuracy
accumulated as in d2l's train_ch6 (Dive into Deep Learning, 7.6). The network is built here, layer by layer as there, so
that nothing of ours is in the yardstick. Prints examples/s by the wall clock, evaluation included.
"""

import json
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import FashionMNIST
from torchvision.transforms import ToTensor


def network() -> nn.Sequential:
    """Builds the network: (N, 1, 28, 28) -> (N, 10)."""
    layers = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.Sigmoid(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.Sigmoid(),
        nn.Linear(120, 84),
        nn.Sigmoid(),
        nn.Linear(84, 10),
    )
    for layer in layers:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
    return layers


def train(root: Path, num_epochs: int) -> float:
    """Trains and evaluates; returns examples per second by the wall clock."""
    batches, test_batches = (
        DataLoader(FashionMNIST(root, train=is_train, transform=ToTensor()), 256, shuffle=is_train)
        for is_train in (True, False)
    )
    model, loss_of = network(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.9)
    started_s = time.perf_counter()
    num_examples = 0
    for _ in range(num_epochs):
        model.train()
        total_loss = total_right = 0.0
        for images, labels in batches:
            optimizer.zero_grad()
            logits = model(images)
            loss = loss_of(logits, labels)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                total_loss += float(loss) * len(labels)
                total_right += float((logits.argmax(1) == labels).sum())
            num_examples += len(labels)
        model.eval()
        with torch.no_grad():
            sum(float((model(images).argmax(1) == labels).sum()) for images, labels in test_batches)
    return num_examples / (time.perf_counter() - started_s)


if __name__ == "__main__":
    print(json.dumps({"examples_per_s": train(Path(sys.argv[1]), int(sys.argv[2]))}))
