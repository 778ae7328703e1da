"""Reads from EXIF or XMP how a picture lies.

Pillow would read all of EXIF, warning of each oddity, and strangers write tens of thousands of entries; this reads one.
"""

import re
import struct

ORIENTATION = 0x0112
LYING = (5, 6, 7, 8)  # those in which width and height change places
XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")
MAX_ENTRIES = 1024  # cameras write tens


def orientation_from(exif: bytes, xmp: bytes) -> int:
    """Finds 1 to 8 in EXIF or else in XMP; upright (1) if neither makes sense: cameras write much that does not."""
    match = XMP_ORIENTATION.search(xmp)
    return _from_exif(exif.removeprefix(b"Exif\0\0")) or (int(match[1]) if match else 1)


def _from_exif(exif: bytes) -> int:
    """Searches a TIFF directory's entries of (tag, type, count, value), twelve bytes each; 0 if there is none."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 0
    try:
        (directory,) = struct.unpack_from(f"{order}I", exif, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", exif, directory)
        for entry in range(min(num_entries, MAX_ENTRIES)):
            tag, value = struct.unpack_from(f"{order}H6xH", exif, directory + 2 + 12 * entry)
            if tag == ORIENTATION:
                return value if 1 <= value <= 8 else 0
    except struct.error:
        pass
    return 0
