"""The command `adapterbank`. Help, completion and wrong usage import no torch: commands import what they need."""
