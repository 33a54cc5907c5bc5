"""The encoder, its heads, its tokenizer, and how pre-trained checkpoints are read."""
