"""The studies that come with the package: a module each, with its question, arms and settings."""
