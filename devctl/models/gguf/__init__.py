"""Models in llama.cpp's file format, GGUF: what their headers say, without a byte of their weights."""
