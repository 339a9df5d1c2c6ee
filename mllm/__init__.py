"""The model being tuned, its quantized base, its adapters, and the tasks it learns."""
