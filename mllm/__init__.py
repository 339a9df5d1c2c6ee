"""The model being tuned, its quantized base, its adapters, and the tasks it learns.

Importing this package registers the composed model with transformers' Auto classes.
"""

from mllm.quiet import quiet

with quiet():
    from mllm.register import register

    register()
