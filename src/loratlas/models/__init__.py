"""From a name to a live base: configs, weights, quantisation, tasks and task heads."""
