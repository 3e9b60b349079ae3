"""The layers that train: PEFT's numbers with fewer passes over the activations, and the kernels they use."""
