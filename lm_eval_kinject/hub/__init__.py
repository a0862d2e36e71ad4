"""The Hugging Face Hub: fetching (at the bottom of the import order), cards and publishing (above the models)."""
