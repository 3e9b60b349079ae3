"""GGUF, llama.cpp's format: adapters and whole models written as it reads them."""
