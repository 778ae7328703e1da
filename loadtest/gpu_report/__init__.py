"""`make gpu-report`: every claim about GPUs, measured on the machine at hand."""
