"""Files that were damaged on a disk."""


def damaged(path):
    """Flip a bit of the last number of a file."""
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)
    return path


def truncated(path):
    """Cut off the end of a file."""
    path.write_bytes(path.read_bytes()[:-9])
    return path
