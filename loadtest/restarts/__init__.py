"""Stop and kill a server under load, over and over, and account for every request: `python -m loadtest.restarts`."""
