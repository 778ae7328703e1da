"""Offers load: LoadGen's scenarios, the processes and clients that send it, and what is asked of a server."""
