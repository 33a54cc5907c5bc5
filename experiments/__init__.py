"""The studies as they were run: each with its question, command and answer."""
