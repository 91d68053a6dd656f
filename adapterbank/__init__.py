"""adapterbank: one frozen Audio Spectrogram Transformer, many trained tasks."""
