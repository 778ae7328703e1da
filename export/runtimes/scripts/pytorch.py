"""PyTorch, running the exported program operator by operator."""

import torch
from harness import serve


def open_model(path, scratch):
    torch.set_num_threads(1)
    module = torch.export.load(path).module()

    @torch.inference_mode()
    def run(images):
        return module(torch.from_numpy(images)).numpy()

    return torch.__version__, lambda size: run


serve(open_model)
