"""What a model needs in memory, computed from its own header before anything is loaded. Pure: bytes in, numbers out.

gguf         the header of a GGUF file, read without its vocabulary
safetensors  the header of a safetensors file
shape        what a GGUF header means: layers, their caches, their weights
config       what a config.json means, for MLX
known        the headers of models whose dimensions are published
footprint    what an engine allocates for a shape: KV, state, compute
budget       what a machine has for it
fit          the two together: a verdict, and the largest context
remedies     what to do if it does not fit, cheapest first
buffers      what an engine says it allocated
"""
