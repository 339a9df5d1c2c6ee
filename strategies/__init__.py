"""Federated LoRA methods: one file a method, and what composes with them."""
