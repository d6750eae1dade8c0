"""Pseudo-terminals: what a person would see, and what a file beside it gets."""

import fcntl
import os
import pty
import re
import struct
import termios
import threading
from contextlib import contextmanager

_STYLES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Terminal:
    """A terminal of ``columns``, and all that was written to it.

    Attributes:
        stream: what writes to it.
    """

    def __init__(self, columns=80, encoding="utf-8"):
        self._parent, self.child = pty.openpty()
        fcntl.ioctl(self.child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.stream = os.fdopen(os.dup(self.child), "w", encoding=encoding, errors="replace")
        self._read = []
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def _listen(self):
        while True:
            try:
                data = os.read(self._parent, 65536)
            except OSError:  # how Linux says that the other end is closed
                return
            if not data:
                return
            self._read.append(data)

    def type(self, text):
        """Press the keys of ``text``."""
        os.write(self._parent, text.encode())

    def close(self):
        """No more is written."""
        self.stream.close()
        os.close(self.child)
        self._reader.join(timeout=30)
        os.close(self._parent)

    @property
    def raw(self):
        """All that was written, as it was."""
        return b"".join(self._read).decode()

    @property
    def text(self):
        """The same without styles, and with plain ends of lines."""
        return _STYLES.sub("", self.raw)


@contextmanager
def terminal(columns=80, encoding="utf-8"):
    """A terminal that is read to its end when it is left."""
    made = Terminal(columns, encoding)
    try:
        yield made
    finally:
        made.close()
