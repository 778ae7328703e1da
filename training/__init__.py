"""Train LeNet-5 on Fashion-MNIST: `python -m training`."""
