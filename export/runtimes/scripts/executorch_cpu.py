"""ExecuTorch: the exported program, lowered to XNNPACK.

Lowered as it is, the program takes batches of 15 at most, and so it is exported again for each batch size.
"""

from importlib.metadata import version

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from harness import serve


def open_model(path, scratch):
    module = torch.export.load(path).module()

    def runner_for(size):
        program = torch.export.export(module, (torch.zeros(size, 1, 28, 28, dtype=torch.uint8),))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
        loaded = Runtime.get().load_program(lowered.buffer)
        method = loaded.load_method("forward")

        def run(images):
            return method.execute([torch.from_numpy(images)])[0].numpy()

        run.memory = lowered, loaded  # which the method points into
        return run

    return version("executorch"), runner_for


serve(open_model)
