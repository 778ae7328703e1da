"""The page that looks inside the served network: its own process, its values, and its answers from `Classify`."""
