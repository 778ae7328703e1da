"""Recognises that memory ran out, in the words of each library: only Python's own error has a type for it."""

import errno

# torch on a CPU, ONNX Runtime's arena, C++ itself, CUDA by itself and in TensorRT.
_WORDS = (
    "can't allocate memory",
    "Failed to allocate memory",
    "bad_alloc",
    "out of memory",
    "MemoryAllocation",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an exception says that the host or a device has no memory left for what was asked."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without importing it
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return any(words in str(error) for words in _WORDS)
