"""What a model needs in memory, computed from its own header before anything is loaded. Pure: bytes in, numbers out.

gguf         the header of a GGUF file, read without its vocabulary
shape        what it means: layers, their caches, their weights; or what published dimensions mean
mlx          what a config.json and the header of a safetensors file mean, for MLX
footprint    what an engine allocates for a shape: KV, state, compute; and what it says it allocated
fit          against what a machine has for it: a verdict, and the largest context
remedies     what to do if it does not fit, cheapest first
"""
