"""Mutants of messages, byte streams and files: what the tests of goal G8 send, each made from a seed and a number."""
