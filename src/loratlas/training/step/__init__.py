"""How one step is computed: gradients, microbatches, the frozen prefix, compilation, memory."""
