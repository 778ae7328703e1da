"""Front ends: each speaks to clients and hands images to a model; serving/supervisor.py runs one of them."""
