"""How fast this is, beside plain PyTorch and transformers."""
