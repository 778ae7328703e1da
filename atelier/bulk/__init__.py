"""Classifies a folder or a Parquet file of pictures into one table; needs the extra `bulk`."""
