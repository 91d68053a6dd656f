"""What peft's LoRA folders are made of: the names of files and tensors that reading and writing share."""

from __future__ import annotations

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
EXTRACTOR = "preprocessor_config.json"  # of transformers' ASTFeatureExtractor, which peft leaves alone
MODEL = "base_model.model."  # peft's prefix of every name
PARTS = {"lora_A.weight": "down", "lora_B.weight": "up", "lora_magnitude_vector": "magnitude"}  # theirs -> ours
