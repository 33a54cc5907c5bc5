"""Where texts and labels are read from: files, TFDS, and the default corpus."""
