"""Examples as tensors: padded or packed, with the attention that packed rows need."""
