"""Images that say how they are to be turned."""

import struct
import zlib

_HEADER = b"MM\x00\x2a\x00\x00\x00\x08"


def turned(content: bytes, orientation: int = 6) -> bytes:
    """Gives a JPEG or PNG an EXIF orientation; 6 shows it turned right by 90 degrees, 3 upside down."""
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    exif = _HEADER + struct.pack(">H", 1) + entry + bytes(4)
    if content[:2] == b"\xff\xd8":
        exif = b"Exif\0\0" + exif
        return content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + content[2:]
    chunk = b"eXIf" + exif
    return content[:33] + struct.pack(">I", len(exif)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[33:]
