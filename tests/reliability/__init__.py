"""Reliability goals G1 to G26: tests all over the tree, marked `goal`, and the program that prints their figures."""
