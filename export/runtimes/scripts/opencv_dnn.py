"""OpenCV's dnn module: reads ONNX as it is."""

import cv2
from harness import serve


def open_model(path, scratch):
    cv2.setNumThreads(1)

    def runner_for(size):
        net = cv2.dnn.readNetFromONNX(path)

        def run(images):
            net.setInput(images)
            return net.forward()

        return run

    return cv2.__version__, runner_for


serve(open_model)
