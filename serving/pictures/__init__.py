"""Turns strangers' bytes into images as Fashion-MNIST stores them: 28 x 28, grayscale, light on a background of 0."""
