"""What a model needs in memory, computed from its own header before anything is loaded. Pure: bytes in, numbers out.

gguf       the header of a GGUF file, read without its vocabulary
shape      what the header means: layers, their caches, their weights
footprint  what llama.cpp allocates for a shape: KV, state, compute
budget     what a machine has for it
fit        the two together: a verdict, and the largest context
"""
