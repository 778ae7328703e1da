"""Attack a server on this machine, and hold it to what an honest client beside the attack may expect: `make attack`."""
