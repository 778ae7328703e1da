"""From strangers' bytes to images as Fashion-MNIST stores them: 28 x 28, grayscale, light on a background of 0."""
