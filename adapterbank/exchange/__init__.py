"""Tasks from and for other libraries. `formats.py` is the table of what there is."""

from adapterbank.exchange.formats import read, write

__all__ = ["read", "write"]
