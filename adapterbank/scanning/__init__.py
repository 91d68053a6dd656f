"""Tasks along a recording of any length: `AdapterBank.scan` and what it answers."""
